// Conditions on the fields of rows: chosen among the values that there are, or typed.

import { get } from "./api.js";
import { button, count, element, trying, visible } from "./dom.js";

const SHOWN = 8; // values of a field before one asks for more

// `changed` is called with the conditions when they change.
export function filters(info, given, changed, signal) {
  let where = [...given];
  let isLoaded = false;
  const title = element("summary");
  const active = element("p", { class: "chips" });
  const lists = element("div", { class: "facets" });
  const example = info.fields.find((name) => !/^(key|id|prompt|response|text|messages)$/.test(name));
  const typed = element("input", {
    name: "where",
    "aria-label": "Another condition",
    placeholder: `${example ?? "field"}=value, year>=2020, lang in de,fr`,
  });
  const form = element(
    "form",
    { class: "line", onsubmit: typedOne },
    typed,
    element("button", { class: "quiet" }, "Add"),
  );
  const box = element("details", { class: "filters", ontoggle: opened }, title, active, form, lists);

  function typedOne(event) {
    event.preventDefault();
    if (typed.value.trim() !== "") set([...where, typed.value.trim()]);
    typed.value = "";
  }

  function opened() {
    if (box.open && !isLoaded) load();
  }

  function set(conditions) {
    where = [...new Set(conditions)];
    draw();
    if (box.open) load();
    changed(where);
  }

  function draw() {
    title.textContent = where.length === 0 ? "Filter" : `Filter (${where.length})`;
    active.replaceChildren(
      ...where.map((condition) =>
        button(
          [visible(condition), element("span", { "aria-hidden": "true" }, " \u00d7")],
          () => set(where.filter((other) => other !== condition)),
          { class: "chip on", "aria-label": `Remove the condition ${visible(condition)}` },
        ),
      ),
    );
  }

  async function load() {
    isLoaded = true;
    lists.replaceChildren(element("p", { class: "soft" }, "Counting\u2026"));
    await trying(async () => {
      const found = await get("fields", { where }, signal);
      lists.replaceChildren(...found.fields.toSorted((a, b) => a.distinct - b.distinct).map(facet));
      const rest = found.others.length === 0 ? "" : ` Fields whose values are not listed: ${found.others.join(", ")}.`;
      const meet = where.length === 0 ? "" : found.rows === 1 ? " meets the conditions" : " meet the conditions";
      const says = `${count(found.rows, "row")}${meet}.${rest}`;
      lists.prepend(element("p", { class: "soft" }, visible(says)));
    });
    if (lists.querySelector("section") === null && lists.textContent.startsWith("Counting")) {
      lists.replaceChildren();
      isLoaded = false;
    }
  }

  function facet({ name, values, distinct }) {
    const list = element("ul", {});
    const show = (n) => {
      list.replaceChildren(...values.slice(0, n).map((one) => element("li", {}, valueButton(name, one))));
      if (values.length > n) {
        const more = `${values.length - n} more`;
        list.append(element("li", {}, button(more, () => show(values.length), { class: "link" })));
      }
    };
    show(SHOWN);
    const n = element("span", { class: "soft" }, ` ${distinct.toLocaleString("en")}`);
    const head = element("p", { class: "name" }, visible(name), n);
    return element("section", { "aria-label": visible(name) }, head, list);
  }

  function valueButton(name, { value, count: n }) {
    const condition = `${name}=${value}`;
    const isOn = where.includes(condition);
    return button(
      [
        element("span", {}, value === "" ? "(empty)" : visible(value)),
        " ",
        element("span", { class: "soft" }, n.toLocaleString("en")),
      ],
      () => set(isOn ? where.filter((other) => other !== condition) : [...where, condition]),
      { class: "value", "aria-pressed": String(isOn) },
    );
  }

  draw();
  return { box, where: () => where, set };
}
