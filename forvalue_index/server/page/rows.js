// The rows of the index: in their order, or by words.

import { get } from "./api.js";
import { button, count, element, labelled, trying, visible } from "./dom.js";
import { filters } from "./filters.js";
import { link, remember } from "./links.js";
import { picturesOf } from "./pictures.js";
import { chips, fieldsOf, saidBy } from "./said.js";
import { downloadButtons, saveButtons } from "./save.js";

const PAGE = 50;
const FOUND = 200; // rows by words, at most
const PREVIEW = 280; // characters of a row in a list

export async function showRows(main, info, parameters, signal) {
  let words = parameters.get("words") ?? "";
  let rows = [];
  const filter = filters(info, parameters.getAll("where"), () => trying(load), signal);
  const field = element("input", { name: "words", type: "search", value: words });
  const form = element(
    "form",
    { class: "line", role: "search", onsubmit: searched },
    labelled("Find by words", field, null, { class: "wide" }),
    element("button", {}, "Show"),
  );
  const summary = element("p", { class: "soft", role: "status" });
  const save = element("span", { class: "right" });
  const list = element("ol", { class: "rows" });
  const foot = element("p", { class: "pages" });
  main.replaceChildren(
    element("h1", {}, "Training rows"),
    form,
    filter.box,
    element("div", { class: "toolbar" }, summary, save),
    list,
    foot,
  );

  function searched(event) {
    event.preventDefault();
    words = field.value.trim();
    trying(load);
  }

  async function load() {
    remember("rows", { words, where: filter.where() });
    rows = [];
    list.replaceChildren();
    summary.textContent = "";
    foot.replaceChildren();
    save.replaceChildren();
    if (words === "") await browse(-1);
    else await search();
  }

  async function browse(after) {
    const where = filter.where();
    const found = await get("rows", { where, after, limit: PAGE }, signal);
    add(found.rows);
    summary.textContent = `${rows.length.toLocaleString("en")} of ${count(found.total ?? rows.length, "row")}`;
    foot.replaceChildren(
      ...(found.more ? [button("More rows", () => trying(() => browse(rows.at(-1).id)), { class: "quiet" })] : []),
    );
    save.replaceChildren(downloadButtons("rows", "export", () => ({ where: filter.where() }), signal));
    if (rows.length === 0) foot.replaceChildren(...empty("No row meets these conditions."));
  }

  async function search() {
    const found = await get("search", { words, where: filter.where(), k: FOUND }, signal);
    add(found.hits.map((hit) => ({ ...hit, row: hit.sample })));
    const most = rows.length === FOUND ? "The best " : "";
    summary.textContent = `${most}${count(rows.length, "row")} with one of these words, the best first`;
    save.replaceChildren(saveButtons("rows", () => ({ words, hits: found.hits }), () => rows.map(({ key, score, row }) => ({ key, score, ...row }))));
    if (rows.length === 0) foot.replaceChildren(...empty("No row has one of these words."));
  }

  function empty(what) {
    const clear = () => {
      field.value = words = "";
      filter.set([]);
    };
    return [element("span", { class: "empty" }, what), button("Show all rows", clear, { class: "link" })];
  }

  function add(more) {
    rows.push(...more);
    list.append(...more.map((each) => listed(each, info)));
  }

  await load();
}

function listed(each, info) {
  const format = info.config.format;
  const figures = each.n_tokens
    ? `${count(each.n_tokens, "token")}, loss ${each.loss.toFixed(2)}`
    : `words ${each.score.toFixed(2)}`;
  return element(
    "li",
    { class: "card" },
    element(
      "p",
      { class: "head" },
      element("a", { href: link("row", { key: each.key }), class: "key" }, visible(each.key)),
      element("span", { class: "soft right" }, figures),
    ),
    picturesOf(each.key, each.row, format),
    saidBy(each.row, format, PREVIEW),
    element("p", { class: "foot" }, chips(fieldsOf(each.row, format))),
  );
}
