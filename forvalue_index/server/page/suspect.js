// One suspect: why it is one, what it says, what it repeats, and what is to become of it.

import { get } from "./api.js";
import { button, element, trying, visible } from "./dom.js";
import { fixForm } from "./fix.js";
import { link } from "./links.js";
import { picturesOf } from "./pictures.js";
import { nearby, nearList } from "./row.js";
import { chips, fieldsOf, saidBy } from "./said.js";

const NEAR = 5;
const ACTIONS = [
  ["keep", "Keep", "K"],
  ["drop", "Drop", "D"],
  ["fix", "Fix", "F"],
];

export function suspect(row, { info, signal, decide, fixed, undo, place }) {
  const format = info.config.format;
  const near = element("div", { class: "near" });
  const editor = element("div", {});
  const pictures = picturesOf(row.key, row.sample, format);
  const buttons = ACTIONS.map(([name, title, key]) =>
    button([title, " ", element("kbd", {}, key)], () => decide(name), {
      class: `quiet ${name}`,
      "aria-pressed": "false",
      disabled: name === "fix" && pictures.length > 0,
    }),
  );
  const box = element(
    "article",
    { class: "card" },
    element(
      "p",
      { class: "head" },
      element("a", { href: link("row", { key: row.key }), class: "key" }, visible(row.key)),
      element("span", { class: "chip" }, visible(row.kind)),
      element("span", { class: "soft right" }, place),
    ),
    element("ul", { class: "reasons" }, row.reasons.map((reason) => element("li", {}, visible(reason)))),
    pictures,
    saidBy(row.sample, format, 4000),
    element("p", { class: "foot" }, chips(fieldsOf(row.sample, format))),
    element(
      "p",
      { class: "decide" },
      buttons,
      button(["Undo ", element("kbd", {}, "U")], undo, { class: "quiet" }),
      button(["Neighbours ", element("kbd", {}, "N")], () => neighbours(), { class: "quiet" }),
    ),
    editor,
    near,
  );

  function show(decision) {
    ACTIONS.forEach(([name], i) => buttons[i].setAttribute("aria-pressed", String(decision?.decision === name)));
  }

  function fix() {
    if (pictures.length > 0) return;
    const done = (changed) => {
      editor.replaceChildren();
      if (changed === null) buttons[2].focus();
      else fixed(changed);
    };
    editor.replaceChildren(fixForm(row.sample, format, done));
  }

  async function neighbours() {
    near.replaceChildren(element("p", { class: "soft" }, "Running the row through the model\u2026"));
    const found = await trying(async () => {
      const parts = [];
      if (row.twin !== null) {
        const twin = await get("row", { key: row.twin }, signal);
        parts.push(element("h3", {}, "The other row"), nearList([{ ...twin, score: 1, sample: twin.row }], info));
      }
      const hits = await nearby({ key: row.key, row: row.sample }, info, "neighbours", signal, NEAR);
      return [...parts, element("h3", {}, "Nearest rows"), nearList(hits, info)];
    });
    near.replaceChildren(...(found ?? []));
  }

  return { box, show, fix, neighbours };
}
