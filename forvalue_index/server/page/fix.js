// A form in which the texts of a row are put right.

import { button, element, labelled, say, visible } from "./dom.js";

// The texts of a row that may be edited: [title, text, a function that puts another in its place].
function textsOf(row, format) {
  const found = [];
  for (const kind of ["prompt", "response", "text", "label", "rejected", "messages"]) {
    const field = format[`${kind}_field`];
    const value = field ? row[field] : undefined;
    if (typeof value === "string") found.push([field, value, (text) => (row[field] = text)]);
    if (!Array.isArray(value)) continue;
    value.forEach((message) => {
      for (const name of ["content", "value"]) {
        if (typeof message?.[name] !== "string") continue;
        const title = String(message.role ?? message.from ?? field);
        found.push([title, message[name], (text) => (message[name] = text)]);
      }
    });
  }
  return found;
}

// `done` is called with the row as it should be, or with null if it stays as it is.
export function fixForm(row, format, done) {
  const changed = structuredClone(row);
  const texts = textsOf(changed, format);
  const whole = texts.length === 0;
  const areas = whole
    ? [element("textarea", { rows: 12, spellcheck: "false" }, JSON.stringify(row, null, 1))]
    : texts.map(([, text]) => element("textarea", { rows: Math.min(8, 1 + text.length / 60), dir: "auto" }, text));
  const form = element(
    "form",
    { class: "fix-form", onsubmit: submitted },
    areas.map((area, i) => labelled(whole ? "The row, as JSON" : visible(texts[i][0]), area, null, { class: "wide" })),
    element("p", { class: "buttons" }, button("Leave it", () => done(null), { class: "quiet" }), element("button", {}, "Save the fix")),
  );

  function submitted(event) {
    event.preventDefault();
    if (!whole) {
      texts.forEach(([, , put], i) => put(areas[i].value));
      if (JSON.stringify(changed) === JSON.stringify(row)) {
        return say("Change a text first: the row is as it was.", true);
      }
      return done(changed);
    }
    try {
      return done(JSON.parse(areas[0].value));
    } catch (error) {
      return say(`This is not JSON (${error.message}).`, true);
    }
  }

  setTimeout(() => areas.at(-1).focus());
  return form;
}
