// Texts whose tokens are coloured by what they contributed, and how two texts act on each other.

import { element, visible } from "./dom.js";
import { post } from "./api.js";

const FAINT = 0.04; // share of the largest contribution that is not coloured
const FOLDED = 240; // characters of unscored text before what is scored; more is folded away
const KEPT = 100; // characters of it that stay

// `tokens` are [text, contribution or null]. Texts of one character that is spread over several
// tokens are joined by the server's rule: all but the last of them are "".
// `rejected` is the token with which a text begins whose influence is subtracted.
export function coloured(tokens, { shared = new Set(), of = () => ({}), rejected = null } = {}) {
  const most = Math.max(...tokens.map(([, value]) => Math.abs(value ?? 0)), 1e-300);
  const underlined = sharedTokens(tokens, shared);
  const spans = [];
  let waiting = 0;
  tokens.forEach(([text, value], place) => {
    waiting += value ?? 0;
    if (place === rejected) spans.push(element("span", { class: "role" }, "rejected"));
    if (text === "") return;
    const share = waiting / most;
    waiting = 0;
    const kinds = [value === null ? "unscored" : "scored"];
    if (Math.abs(share) >= FAINT) kinds.push(share > 0 ? "help" : "hurt");
    if (underlined.has(place)) kinds.push("shared");
    const span = element("span", { class: kinds.join(" "), ...of(place) }, visible(text));
    span.style.setProperty("--share", Math.min(Math.abs(share), 1).toFixed(3));
    spans.push(span);
  });
  return folded(spans, tokens);
}

function folded(spans, tokens) {
  const box = element("div", { class: "text tokens", dir: "auto" });
  const before = spans.findIndex((span) => span.classList.contains("scored"));
  const length = spans.slice(0, before).reduce((sum, span) => sum + span.textContent.length, 0);
  if (tokens.length === 0 || before < 1 || length <= FOLDED) {
    box.append(...spans);
    return box;
  }
  let first = before;
  for (let n = 0; first > 0 && n < KEPT; first--) n += spans[first - 1].textContent.length;
  const hidden = spans.slice(0, first);
  const n = hidden.reduce((sum, span) => sum + span.textContent.length, 0);
  const more = element(
    "button",
    { type: "button", class: "link", onclick: () => more.replaceWith(...hidden) },
    `\u2026 ${n.toLocaleString("en")} characters before`,
  );
  box.append(more, " ", ...spans.slice(first));
  return box;
}

export function wordsOf(text) {
  return new Set((text.toLowerCase().match(/[\p{L}\p{N}]{4,}/gu) ?? []));
}

function sharedTokens(tokens, shared) {
  const found = new Set();
  if (shared.size === 0) return found;
  const ends = [];
  let text = "";
  for (const [part] of tokens) ends.push((text += part).length);
  for (const match of text.matchAll(/[\p{L}\p{N}]{4,}/gu)) {
    if (!shared.has(match[0].toLowerCase())) continue;
    const end = match.index + match[0].length;
    let place = firstAfter(ends, match.index);
    for (; place < ends.length && (place === 0 ? 0 : ends[place - 1]) < end; place++) {
      found.add(place);
    }
  }
  return found;
}

function firstAfter(ends, position) {
  let low = 0;
  let high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] > position) high = middle;
    else low = middle + 1;
  }
  return low;
}

// Shows both texts of an explanation. A chosen token of one colours the other by the pairs' terms.
export async function explained(query, key, signal) {
  let found;
  try {
    found = await post("explain", { ...query, key }, signal);
  } catch (error) {
    if (!/pairs of tokens/.test(error.message)) throw error;
    found = await post("explain", { ...query, key, terms: false }, signal);
  }
  const box = element("div", { class: "pair" });
  const note = element("p", { class: "soft" });
  const halves = { query: element("div"), sample: element("div") };
  let chosen = null; // [side, place among the scored tokens]

  function values(side) {
    const { contributions } = found[side];
    if (chosen === null || chosen[0] === side || !found.terms) return contributions;
    const scored = [...found[side].scored.keys()].filter((place) => found[side].scored[place]);
    const all = contributions.map(() => 0);
    scored.forEach((place, number) => {
      all[place] =
        side === "sample" ? found.terms[chosen[1]][number] : found.terms[number][chosen[1]];
    });
    return all;
  }

  function draw(focus = false) {
    for (const side of ["query", "sample"]) {
      const { tokens, scored, rejected } = found[side];
      const values_ = values(side);
      let number = -1;
      const numbers = scored.map((is) => (is ? ++number : -1));
      const isChosen = (place) =>
        chosen !== null && chosen[0] === side && chosen[1] === numbers[place];
      const of = (place) =>
        scored[place] && found.terms
          ? {
              role: "button",
              tabindex: 0,
              "aria-pressed": isChosen(place) ? "true" : "false",
              onclick: () => choose(side, numbers[place]),
              onkeydown: (event) => {
                if (event.key === "Enter" || event.key === " ") {
                  event.preventDefault();
                  choose(side, numbers[place]);
                }
              },
            }
          : {};
      const pairs = tokens.map((text, place) => [text, scored[place] ? values_[place] : null]);
      halves[side].replaceChildren(coloured(pairs, { of, rejected }));
    }
    if (focus) box.querySelector('[aria-pressed="true"]')?.focus();
    note.textContent = !found.terms
      ? "The texts are too long for the terms of all pairs: these are the sums."
      : chosen === null
        ? "Choose a token to see on which tokens of the other text it acted."
        : "Shown is what acted together with the chosen token. Choose it again to see the sums.";
  }

  function choose(side, number) {
    chosen = chosen !== null && chosen[0] === side && chosen[1] === number ? null : [side, number];
    draw(true);
  }

  box.append(
    element("section", {}, element("h4", {}, "The answer"), halves.query),
    element("section", {}, element("h4", {}, "The training row"), halves.sample),
    note,
  );
  draw();
  return box;
}
