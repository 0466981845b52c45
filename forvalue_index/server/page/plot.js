// The mean value of groups as bars, with their standard errors.

import { signed, visible } from "./dom.js";

const SPACE = "http://www.w3.org/2000/svg";
const [NAMES, FIGURES, HEIGHT, WIDTH] = [170, 70, 26, 760];
const MOST = 30; // groups that are drawn: those of both ends
const LONGEST = 24; // characters of a name

function drawn(tag, properties, text) {
  const made = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function groupPlot(groups) {
  const shown = groups.length <= MOST ? groups : [...groups.slice(0, MOST / 2), ...groups.slice(-MOST / 2)];
  const reach = shown.map(({ mean, se }) => Math.abs(mean) + (se ?? 0));
  const most = Math.max(...reach, 1e-300);
  const isLow = shown.some(({ mean }) => mean < 0);
  const room = WIDTH - NAMES - FIGURES;
  const zero = NAMES + (isLow ? room / 2 : 0);
  const scale = (isLow ? room / 2 : room) / most;
  const height = shown.length * HEIGHT + 8;
  const svg = drawn("svg", {
    viewBox: `0 0 ${WIDTH} ${height}`,
    class: "plot",
    role: "img",
    "aria-label": "Mean value of each group; the table below has the figures",
  });
  shown.forEach(({ name, mean, se }, i) => {
    const middle = i * HEIGHT + HEIGHT / 2 + 4;
    const length = Math.max(Math.abs(mean) * scale, 1);
    const side = mean >= 0 ? "help" : "hurt";
    const text = name.length > LONGEST ? `${name.slice(0, LONGEST - 1)}\u2026` : name;
    svg.append(
      drawn("text", { x: NAMES - 10, y: middle + 4, "text-anchor": "end" }, visible(text)),
      drawn("rect", { x: mean >= 0 ? zero : zero - length, y: middle - 8, width: length, height: 16, rx: 3, class: side }),
      drawn("text", { x: WIDTH - FIGURES + 10, y: middle + 4, class: "figure" }, signed(mean)),
    );
    if (se !== null) {
      const [low, high] = [zero + (mean - se) * scale, zero + (mean + se) * scale];
      svg.append(drawn("path", { d: `M${low} ${middle}H${high}M${low} ${middle - 4}v8M${high} ${middle - 4}v8`, class: "whisker" }));
    }
  });
  svg.append(drawn("path", { d: `M${zero} 0V${height}`, class: "axis" }));
  return svg;
}
