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
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
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

// A text as it is, with line breaks; of a long one the beginning, and a button for the rest.
export function passage(text, properties = {}, most = LONG) {
  const box = element("div", { class: "text", dir: "auto", ...properties });
  if (text.length <= most) {
    box.append(visible(text));
    return box;
  }
  const more = element(
    "button",
    {
      type: "button",
      class: "link",
      onclick: () => box.replaceChildren(visible(text)),
    },
    `Show all ${text.length.toLocaleString("en")} characters`,
  );
  box.append(visible(text.slice(0, most)), "\u2026 ", more);
  return box;
}

export function signed(value) {
  const digits = Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(3);
  return value >= 0 ? `+${digits}` : digits.replace("-", "\u2212");
}

const status = document.getElementById("status");

export function say(text, wrong = false) {
  status.textContent = text === "" ? "" : visible(text);
  status.classList.toggle("wrong", wrong);
}
