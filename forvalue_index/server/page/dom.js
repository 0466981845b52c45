// Elements made of names and texts. Nothing is ever read as markup.

// An element; what of `properties` begins with "on" listens, the others are attributes.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, value);
    }
  }
  made.append(...wanted(children));
  return made;
}

function wanted(children) {
  return children.flat(Infinity).filter((child) => ![null, undefined, false].includes(child));
}

// Puts children into a box instead of those that it has.
export function fill(box, ...children) {
  box.replaceChildren(...wanted(children));
}

// Characters that cannot be seen, or that turn the direction of what follows.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

export function visible(text) {
  return text.replace(HIDDEN, (found) => {
    const code = found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return `\u27e8U+${code}\u27e9`;
  });
}

const LONG = 1500; // characters that are shown before one asks for more
const STEP = 50_000; // and at a time after it

// A text as it is, with line breaks; of a long one the beginning, and a button for more.
export function passage(text, properties = {}, most = LONG) {
  const box = element("div", { class: "text", dir: "auto", ...properties });
  const show = (n) => {
    box.replaceChildren(visible(text.slice(0, n)));
    if (text.length <= n) return;
    const next = Math.min(text.length, n + STEP);
    const said = next === text.length ? "all" : "more of";
    const more = `Show ${said} ${text.length.toLocaleString("en")} characters`;
    box.append("\u2026 ", button(more, () => show(next), { class: "link" }));
  };
  show(most);
  return box;
}

// A button; `text` is one, or what it is made of.
export function button(text, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, text);
}

// A label with its field, and a sentence about it.
export function labelled(title, field, says = null, properties = {}) {
  const about = says === null ? null : element("span", { class: "soft" }, says);
  return element("label", properties, title, field, about);
}

export function numberField(name, title, value, min, max, step = 1) {
  const given = { type: "number", name, value, min, max, step, required: true };
  return labelled(title, element("input", given));
}

export function choice(name, options, chosen, properties = {}) {
  return element(
    "select",
    { name, ...properties },
    options.map(([value, title]) =>
      element("option", { value, selected: value === chosen }, title),
    ),
  );
}

export function facts(pairs) {
  return element(
    "dl",
    { class: "facts" },
    pairs.map(([name, value]) => [
      element("dt", {}, visible(name)),
      element("dd", {}, typeof value === "string" ? passage(value) : value),
    ]),
  );
}

export function signed(value) {
  const size = Math.abs(value);
  const digits = size >= 1000 ? value.toFixed(0) : value.toPrecision(3);
  return value >= 0 ? `+${digits}` : digits.replace("-", "\u2212");
}

export function count(n, one, many = `${one}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

const status = document.getElementById("status");

export function say(text, wrong = false) {
  status.textContent = text === "" ? "" : visible(text);
  status.classList.toggle("wrong", wrong);
}

// Runs work and says what went wrong; what was given up says nothing.
export async function trying(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
    return undefined;
  }
}
