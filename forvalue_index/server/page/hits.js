// The rows behind an answer: those that helped and those that hurt, each with its tokens.

import { button, element, say, signed, trying, visible } from "./dom.js";
import { link } from "./links.js";
import { explained } from "./pair.js";
import { picturesOf } from "./pictures.js";
import { chips, fieldsOf, saidBy } from "./said.js";
import { coloured, wordsOf } from "./tokens.js";

// `groups` are [title, hits, what is said if there are none]; `query` is what a row is explained
// with, null if it cannot be; `target` the text whose words are underlined where rows share them.
export function hitGroups(groups, { info, query, target, signal }) {
  const all = groups.flatMap(([, hits]) => hits);
  const most = all.reduce((most, hit) => Math.max(most, Math.abs(hit.score)), 1e-300);
  const context = { info, query, most, shared: wordsOf(target), signal };
  const box = element("div", { class: groups.length === 1 ? "hits one" : "hits" });
  if (all.some((hit) => hit.tokens)) box.append(legend());
  box.append(...groups.map(([title, hits, empty]) => group(title, hits, empty, context)));
  return box;
}

function group(title, hits, empty, context) {
  const shown =
    hits.length > 0
      ? element("ol", {}, hits.map((hit, i) => card(hit, i + 1, context)))
      : element("p", { class: "empty" }, empty);
  return element("section", {}, element("h3", {}, title), shown);
}

function card(hit, rank, { info, query, most, shared, signal }) {
  const format = info.config.format;
  const side = sideOf(hit);
  const bar = element("span", { class: `bar ${side}` });
  bar.style.setProperty("--share", (Math.abs(hit.score) / most).toFixed(3));
  const below = element("div");
  const canExplain = query !== null && !format.label_field;
  const open = canExplain
    ? button("Token by token", () => toggle(null), { class: "link", "aria-expanded": "false" })
    : null;
  const of = (place) => (canExplain ? { "data-place": place, title: "See what it acted on" } : {});
  const text = hit.tokens
    ? coloured(hit.tokens, { turns: hit.turns, rejected: hit.rejected, shared, of })
    : saidBy(hit.sample, format, 600);
  text.addEventListener("click", (event) => {
    const token = event.target.closest("[data-place]");
    if (token && getSelection().isCollapsed) show(Number(token.dataset.place));
  });
  const parts = Object.entries(hit.parts ?? {}).map(([name, value]) => [name, signed(value)]);
  const item = element(
    "li",
    { class: "card hit" },
    element(
      "p",
      { class: "head" },
      element("span", { class: "rank soft" }, String(rank)),
      element("strong", { class: side }, signed(hit.score)),
      element("span", { class: "track", "aria-hidden": "true" }, bar),
      hit.exact ? element("span", { class: "soft" }, "exact") : null,
      element("a", { href: link("row", { key: hit.key }), class: "key" }, visible(hit.key)),
    ),
    picturesOf(hit.key, hit.sample, format),
    text,
    element("p", { class: "foot" }, chips([...parts, ...fieldsOf(hit.sample, format)]), open),
    below,
  );

  function toggle(token) {
    if (below.childElementCount === 0) return show(token);
    open.setAttribute("aria-expanded", "false");
    below.replaceChildren();
    return undefined;
  }

  async function show(token) {
    open.setAttribute("aria-expanded", "true");
    say("Running both texts again\u2026");
    const found = await trying(() => explained(query, hit.key, signal, token));
    if (found === undefined) {
      if (below.childElementCount === 0) open.setAttribute("aria-expanded", "false");
      return;
    }
    say("");
    below.replaceChildren(found);
  }
  return item;
}

// Whether a row helped or hurt. A score of words does not say it; its influence does, if it is known.
function sideOf(hit) {
  const influence = hit.parts ? (hit.parts.influence ?? 0) : hit.score;
  return influence === 0 ? "" : influence > 0 ? "help" : "hurt";
}

function legend() {
  return element(
    "p",
    { class: "legend soft" },
    element("span", { class: "sample help" }, "green"),
    " raised the likelihood, ",
    element("span", { class: "sample hurt" }, "red"),
    " lowered it; grey was read, but not trained on; ",
    element("span", { class: "shared" }, "dotted"),
    " words are in the answer too. Click a token to see what it acted on.",
  );
}

// Hits as rows of a table.
export function hitRows(groups) {
  return groups.flatMap(([title, hits]) =>
    hits.map((hit, i) => ({
      group: title,
      rank: i + 1,
      key: hit.key,
      score: hit.score,
      exact: hit.exact ?? false,
      ...hit.parts,
      ...Object.fromEntries(Object.entries(hit.sample).map(([name, value]) => [`sample.${name}`, value])),
    })),
  );
}
