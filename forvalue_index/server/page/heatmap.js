// The term of each pair of tokens as a picture: rows are the answer's, columns the training row's.

import { element } from "./dom.js";

const LARGEST = 22; // pixels of a cell
const HIGHEST = 420; // of the picture, unless cells would vanish
const WIDEST = 900;
const FLAT = 0.75; // exponent that lets small terms be seen

export function heatMap(terms, sides, pointed) {
  const [rows, columns] = [terms.length, terms[0].length];
  const cell = Math.max(1, Math.min(LARGEST, HIGHEST / rows, WIDEST / columns));
  const [width, height] = [Math.ceil(columns * cell), Math.ceil(rows * cell)];
  const scale = devicePixelRatio || 1;
  const says = `${rows} tokens of the answer, ${columns} of the row: the largest pairs are in the table below`;
  const canvas = element("canvas", {
    width: width * scale,
    height: height * scale,
    role: "img",
    "aria-label": `Heat map. ${says}`,
  });
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const frame = element("span", { class: "outline", hidden: true });
  const box = element(
    "div",
    { class: "heat", tabindex: 0, role: "group", "aria-label": "Heat map, scrolls" },
    element("div", { class: "plane" }, canvas, frame),
  );
  const most = terms.reduce(
    (most, line) => line.reduce((most, value) => Math.max(most, Math.abs(value)), most),
    1e-300,
  );

  function paint() {
    const style = getComputedStyle(document.documentElement);
    const rgb = (name) => style.getPropertyValue(name).trim().split(/\s+/).join(",");
    const [help, hurt] = [rgb("--help"), rgb("--hurt")];
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const gap = cell > 5 ? 1 : 0;
    terms.forEach((line, i) =>
      line.forEach((value, j) => {
        const strength = 0.04 + 0.96 * (Math.abs(value) / most) ** FLAT;
        context.fillStyle = `rgba(${value < 0 ? hurt : help},${strength.toFixed(3)})`;
        context.fillRect(j * cell, i * cell, cell - gap, cell - gap);
      }),
    );
  }

  // Marks the line of a chosen token: [side, number].
  function outline(chosen) {
    frame.hidden = chosen === null;
    if (chosen === null) return;
    const [name, number] = chosen;
    const place = name === "query" ? [0, number * cell, width, cell] : [number * cell, 0, cell, height];
    ["left", "top", "width", "height"].forEach((edge, i) => (frame.style[edge] = `${place[i]}px`));
  }

  canvas.addEventListener("pointermove", (event) => {
    const [i, j] = [event.offsetY, event.offsetX].map((at) => Math.floor(at / cell));
    if (i >= 0 && j >= 0 && i < rows && j < columns) pointed(i, j);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  requestAnimationFrame(paint);
  return { box, outline };
}
