// The rows of the index: in their order, by words, and one by itself.

import { get } from "./api.js";
import { element, passage, visible } from "./dom.js";

const PAGE = 25;
const PREVIEW = 280; // characters of a row in a list

export async function showRows(main, info, parameters, signal) {
  const words = parameters.get("words") ?? "";
  const where = conditionsOf(parameters.get("where") ?? "");
  const after = Number(parameters.get("after") ?? -1);
  const form = element(
    "form",
    { class: "line", role: "search", onsubmit: go },
    element("label", {}, "Words", element("input", { name: "words", type: "search", value: words })),
    conditionsField(info, where),
    element("button", {}, "Show"),
  );

  function go(event) {
    event.preventDefault();
    const given = new FormData(form);
    location.hash = link("rows", { words: given.get("words"), where: given.get("where") });
  }

  const list = element("ol", { class: "rows" });
  main.replaceChildren(element("h2", {}, "Training rows"), form, list);
  const found =
    words.trim() === ""
      ? await get("rows", { where, after, limit: PAGE }, signal)
      : await get("search", { words, where, k: PAGE }, signal);
  const rows = found.rows ?? found.hits.map((hit) => ({ ...hit, row: hit.sample }));
  list.append(...rows.map((each) => listed(each, info)));
  if (rows.length === 0) {
    const what = words === "" ? "No row meets these conditions." : "No row has one of these words.";
    main.append(element("p", { class: "empty" }, what));
  }
  const pages = element("p", { class: "pages" });
  if (found.more) {
    const next = { where: where.join("\n"), after: rows.at(-1).id };
    pages.append(element("a", { href: link("rows", next) }, "Next rows"));
  }
  if (after >= 0) {
    pages.prepend(element("a", { href: link("rows", { where: where.join("\n") }) }, "First rows"));
  }
  main.append(pages);
}

function listed(each, info) {
  const figures = each.n_tokens
    ? `${each.n_tokens} tokens, loss ${each.loss.toFixed(2)}`
    : `words ${each.score.toFixed(2)}`;
  return element(
    "li",
    {},
    element(
      "p",
      { class: "head" },
      element("a", { href: link("row", { key: each.key }) }, visible(each.key)),
      element("span", { class: "soft" }, figures),
    ),
    textOf(each.row, info, PREVIEW),
  );
}

export async function showRow(main, info, parameters, signal) {
  const found = await get("row", { key: parameters.get("key") ?? "" }, signal);
  const { row, ...figures } = found;
  const { prompt_field: asked, response_field: said } = info.config.format;
  const isPair = typeof row[asked] === "string" && typeof row[said] === "string";
  main.replaceChildren(
    element("p", {}, element("a", { href: "#/rows" }, "All rows")),
    element("h2", {}, "Row ", element("span", { class: "key" }, visible(found.key))),
    textOf(row, info, 4000),
    isPair
      ? element(
          "p",
          {},
          element(
            "a",
            { class: "button", href: link("ask", { prompt: row[asked], response: row[said] }) },
            "Which rows drove this response?",
          ),
        )
      : null,
    element("h3", {}, "Fields"),
    facts(row),
    element("h3", {}, "What the index keeps of it"),
    facts(figures),
  );
}

function facts(values) {
  return element(
    "dl",
    { class: "facts" },
    Object.entries(values).map(([name, value]) => [
      element("dt", {}, visible(name)),
      element("dd", {}, passage(shown(value))),
    ]),
  );
}

function shown(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 1);
}

// What a row says: roles of a conversation, or prompt and response apart.
export function textOf(row, info, most) {
  const format = info.config.format;
  const box = element("div", { class: "said" });
  const messages = row[format.messages_field];
  if (Array.isArray(messages)) {
    for (const message of messages) {
      const role = String(message?.role ?? message?.from ?? "");
      const content = message?.content ?? message?.value ?? "";
      box.append(
        element("span", { class: "role" }, visible(role)),
        passage(shown(content), { class: `text ${role === "assistant" ? "" : "unscored"}` }, most),
      );
    }
    return box;
  }
  const text = row[format.text_field];
  if (text !== undefined) {
    box.append(passage(shown(text), {}, most));
    if (format.label_field) {
      box.append(element("span", { class: "role" }, visible(shown(row[format.label_field]))));
    }
    return box;
  }
  for (const [field, kind] of [
    [format.prompt_field, "text unscored"],
    [format.response_field, "text"],
  ]) {
    if (row[field] !== undefined) box.append(passage(shown(row[field]), { class: kind }, most));
  }
  const rejected = row[format.rejected_field];
  if (rejected !== undefined) {
    box.append(element("span", { class: "role" }, "rejected"), passage(shown(rejected), {}, most));
  }
  if (box.childElementCount === 0) box.append(passage(shown(row), {}, most));
  return box;
}

export function link(view, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null);
  const query = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
  return `#/${view}${given.length ? `?${query}` : ""}`;
}

export function conditionsOf(text) {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
}

export function conditionsField(info, where) {
  const example = info.fields.find((name) => !/^(key|id|prompt|response|text|messages)$/.test(name)) ?? "lang";
  return element(
    "label",
    { class: "wide" },
    "Only rows with",
    element(
      "textarea",
      { name: "where", rows: 1, placeholder: `${example}=\u2026`, "aria-describedby": "where-help" },
      where.join("\n"),
    ),
    element(
      "span",
      { id: "where-help", class: "soft" },
      `One condition on each line, such as ${example}=value. Fields: ${info.fields.join(", ")}`,
    ),
  );
}

