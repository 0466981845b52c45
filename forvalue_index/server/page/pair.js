// How an answer and a training row acted on each other: both texts, and every pair of tokens.

import { post } from "./api.js";
import { element, signed, visible } from "./dom.js";
import { heatMap } from "./heatmap.js";
import { coloured } from "./tokens.js";

const LISTED = 5; // pairs with the largest terms
const NAMED = 3; // tokens that are named for a chosen one

// Shows both texts. A chosen token of one colours the other by the pairs' terms; `chosen` is the
// one that is chosen at first: its place among the tokens of the row.
export async function explained(query, key, signal, chosenToken = null) {
  const found = await asked(query, key, signal);
  const sides = { query: side(found.query), sample: side(found.sample) };
  const halves = { query: element("div"), sample: element("div") };
  const note = element("p", { class: "soft note", role: "status" });
  const map = found.terms ? heatMap(found.terms, sides, (i, j) => pointed(i, j)) : null;
  let chosen = null; // [side, number among its scored tokens]

  function values(name) {
    const own = sides[name];
    if (chosen === null || chosen[0] === name) return own.contributions;
    const all = own.contributions.map(() => 0);
    own.places.forEach((place, number) => {
      all[place] = name === "sample" ? found.terms[chosen[1]][number] : found.terms[number][chosen[1]];
    });
    return all;
  }

  function draw(focus = false) {
    for (const name of ["query", "sample"]) {
      const own = sides[name];
      const now = values(name);
      const current = chosen !== null && chosen[0] === name ? chosen[1] : 0;
      const of = (place) => {
        if (!found.terms) return {};
        const number = own.numbers[place];
        return {
          role: "button",
          tabindex: number === current ? 0 : -1,
          "data-number": number,
          "aria-label": own.tokens[place].trim() === "" ? "space" : null,
          "aria-pressed": String(chosen !== null && chosen[0] === name && chosen[1] === number),
        };
      };
      const tokens = own.tokens.map((text, place) => [text, own.scored[place] ? now[place] : null]);
      const { turns, rejected } = own;
      halves[name].replaceChildren(coloured(tokens, { turns, rejected, of }));
    }
    if (focus) halves[chosen[0]].querySelector('[aria-pressed="true"]')?.focus();
    note.replaceChildren(...said());
    map?.outline(chosen);
  }

  function said() {
    if (!found.terms) return ["The texts are too long for every pair of tokens: these are the sums."];
    if (chosen === null) {
      return ["Choose a token to see on which tokens of the other text it acted."];
    }
    const [name, number] = chosen;
    const other = name === "query" ? "sample" : "query";
    const now = values(other);
    const best = sides[other].places
      .toSorted((a, b) => Math.abs(now[b]) - Math.abs(now[a]))
      .slice(0, NAMED);
    return [
      quoted(sides[name], sides[name].places[number]),
      other === "query" ? " acted on these words of the answer: " : " was moved by: ",
      ...best.flatMap((place, i) => [i ? ", " : "", quoted(sides[other], place), ` ${signed(now[place])}`]),
      ". Choose it again, or press Escape, to see the sums.",
    ];
  }

  function choose(name, number) {
    const again = chosen !== null && chosen[0] === name && chosen[1] === number;
    chosen = again ? null : [name, number];
    draw(!again);
  }

  function pointed(i, j) {
    const parts = [quoted(sides.query, sides.query.places[i]), " \u00d7 "];
    note.replaceChildren(...parts, quoted(sides.sample, sides.sample.places[j]), ` ${signed(found.terms[i][j])}`);
  }

  for (const name of ["query", "sample"]) {
    halves[name].addEventListener("click", (event) => {
      const token = event.target.closest("[data-number]");
      if (token) choose(name, Number(token.dataset.number));
    });
    halves[name].addEventListener("keydown", (event) => onKey(event, name));
  }

  function onKey(event, name) {
    const token = event.target.closest("[data-number]");
    if (!token) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      event.preventDefault();
      const next = halves[name].querySelector(`[data-number="${Number(token.dataset.number) + step}"]`);
      if (!next) return;
      token.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(name, Number(token.dataset.number));
    } else if (event.key === "Escape" && chosen !== null) {
      event.preventDefault();
      chosen = null;
      draw();
    }
  }

  const box = element(
    "div",
    { class: "pair" },
    element("section", {}, element("h4", {}, "The answer"), halves.query),
    element("section", {}, element("h4", {}, "The training row"), halves.sample),
    note,
    map && element("details", { class: "map" }, element("summary", {}, "Every pair of tokens"), map.box, largest()),
  );

  function largest() {
    const all = found.terms.flatMap((line, i) => line.map((value, j) => ({ value, i, j })));
    all.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    const cells = all.slice(0, LISTED).map(({ value, i, j }) =>
      element(
        "tr",
        {},
        element("td", { class: "figure" }, signed(value)),
        element("td", {}, quoted(sides.query, sides.query.places[i])),
        element("td", {}, quoted(sides.sample, sides.sample.places[j])),
      ),
    );
    const heads = ["influence", "of the answer", "of the row"];
    const head = element("tr", {}, heads.map((text) => element("th", { scope: "col" }, text)));
    return element("table", {}, element("caption", {}, "The largest"), element("thead", {}, head), element("tbody", {}, cells));
  }

  if (chosenToken !== null && found.terms) {
    const number = sides.sample.numbers[chosenToken];
    if (number >= 0) chosen = ["sample", number];
  }
  draw();
  return box;
}

async function asked(query, key, signal) {
  try {
    return await post("explain", { ...query, key }, signal);
  } catch (error) {
    if (!/pairs of tokens/.test(error.message)) throw error;
    return post("explain", { ...query, key, terms: false }, signal);
  }
}

function side(given) {
  const places = [...given.scored.keys()].filter((place) => given.scored[place]);
  const numbers = given.scored.map(() => -1);
  places.forEach((place, number) => (numbers[place] = number));
  return { ...given, places, numbers };
}

function quoted(own, place) {
  const text = own.tokens[place].trim() || own.tokens[place].replaceAll("\n", "\u23ce").replaceAll(" ", "\u2423") || "\u00b7";
  return element("b", { class: "token" }, visible(text));
}
