// One row: what it says, what the index keeps of it, its neighbours, and what it helps and hurts.

import { get, post } from "./api.js";
import { button, element, facts, fill, signed, trying, visible } from "./dom.js";
import { link } from "./links.js";
import { filesOf, picturesOf, uriOf, withPictures } from "./pictures.js";
import { chips, fieldsOf, partsOf, saidBy } from "./said.js";
import { saveButtons } from "./save.js";

const NEAREST = 10;

const LISTS = {
  neighbours: {
    title: "Neighbours",
    says: "The rows whose influence points the same way (cosine): they teach nearly the same.",
    asked: { metric: "cosine" },
    sign: 1,
  },
  helps: {
    title: "Helps",
    says: "Training on this row made the responses of these rows more likely.",
    asked: { metric: "dot" },
    sign: 1,
  },
  hurts: {
    title: "Hurts",
    says: "Training on this row made the responses of these rows less likely.",
    asked: { metric: "dot", opponents: true },
    sign: -1,
  },
};

export async function showRow(main, info, parameters, signal) {
  const found = await get("row", { key: parameters.get("key") ?? "" }, signal);
  const { row, ...figures } = found;
  const format = info.config.format;
  const lists = element("div", { class: "near" });
  const tabs = element("div", { class: "tabs", role: "group", "aria-label": "Rows beside it" });
  fill(
    main,
    element("p", {}, element("a", { href: "#/rows" }, "All rows")),
    element(
      "div",
      { class: "toolbar" },
      element("h1", {}, "Row ", element("span", { class: "key" }, visible(found.key))),
      element("span", { class: "right" }, saveButtons("row", () => found, () => [{ ...figures, ...row }])),
    ),
    element("div", { class: "card" }, picturesOf(found.key, row, format), saidBy(row, format, 4000)),
    askLink(found, info),
    tabs,
    lists,
    element("h2", {}, "Fields"),
    facts(Object.entries(row).map(([name, value]) => [name, shown(value)])),
    element("h2", {}, "What the index keeps of it"),
    facts(Object.entries(figures).map(([name, value]) => [name, shown(value)])),
  );
  tabs.append(
    ...Object.entries(LISTS).map(([name, { title }]) =>
      button(title, () => trying(() => open(name)), { class: "quiet", "aria-pressed": "false", "data-name": name }),
    ),
  );

  async function open(name) {
    for (const tab of tabs.children) tab.setAttribute("aria-pressed", String(tab.dataset.name === name));
    history.replaceState(null, "", link("row", { key: found.key, beside: name }));
    lists.replaceChildren(element("p", { class: "soft" }, "Running the row through the model\u2026"));
    try {
      const hits = await nearby(found, info, name, signal);
      lists.replaceChildren(element("p", { class: "soft" }, LISTS[name].says), nearList(hits, info));
    } catch (error) {
      lists.replaceChildren();
      throw error;
    }
  }

  const beside = parameters.get("beside");
  if (LISTS[beside]) await open(beside);
}

function shown(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 1);
}

// The rows beside one, but itself: `name` is "neighbours", "helps" or "hurts".
export async function nearby(found, info, name, signal, k = NEAREST) {
  const { asked, sign } = LISTS[name];
  const body = { ...(await queryBy(found, info, signal)), ...asked, k: k + 1 };
  const { hits } = await post("query", body, signal);
  return hits.filter((hit) => hit.key !== found.key && hit.score * sign > 0).slice(0, k);
}

// A row of the index as a query: its pictures are fetched, of which it tells only the hash.
async function queryBy(found, info, signal) {
  const files = await filesOf(found.key, found.row, info.config.format, signal);
  return { row: withPictures(found.row, await Promise.all(files.map(uriOf))) };
}

export function nearList(hits, info) {
  const format = info.config.format;
  if (hits.length === 0) return element("p", { class: "empty" }, "No other row does.");
  return element(
    "ol",
    { class: "rows" },
    hits.map((hit) =>
      element(
        "li",
        { class: "card" },
        element(
          "p",
          { class: "head" },
          element("strong", { class: hit.score >= 0 ? "help" : "hurt" }, signed(hit.score)),
          element("a", { href: link("row", { key: hit.key }), class: "key" }, visible(hit.key)),
        ),
        picturesOf(hit.key, hit.sample, format),
        saidBy(hit.sample, format, 280),
        element("p", { class: "foot" }, chips(fieldsOf(hit.sample, format))),
      ),
    ),
  );
}

// A link to Ask with the row's prompt and response, if it has them.
function askLink({ key, row }, info) {
  const format = info.config.format;
  if (format.text_field && !format.label_field) return null;
  const parts = partsOf(row, format).filter(([role]) => !/^(rejected)$/.test(role));
  const last = parts.at(-1);
  const asked = parts.at(-2);
  if (!last || !asked || last[1] === "") return null;
  const turns = parts.slice(0, -2).filter(([role]) => /^(user|assistant|system)$/.test(role));
  const parameters = {
    prompt: asked[1],
    turns: turns.length > 0 ? JSON.stringify(turns) : "",
    response: last[1],
    own: 1,
    picture: info.images && picturesOf(key, row, format).length > 0 ? key : "",
  };
  return element(
    "p",
    {},
    element("a", { class: "button", href: link("ask", parameters) }, "Which rows drove this response?"),
  );
}
