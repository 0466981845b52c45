// What a row says: the turns of a conversation, or prompt and response apart.

import { element, passage, visible } from "./dom.js";

export function isChat(format) {
  return format.chat || Boolean(format.messages_field);
}

function shown(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 1);
}

// The text of a message, of which a content may be made of parts.
function words(message) {
  const content = message?.content ?? message?.value;
  if (Array.isArray(content)) {
    const texts = content.filter((part) => typeof part?.text === "string");
    return texts.map((part) => part.text).join("\n");
  }
  if (content === undefined || content === null || content === "") {
    const calls = message?.tool_calls ?? message?.function_call;
    return calls === undefined ? "" : shown(calls);
  }
  return shown(content);
}

function turn(role, text, most) {
  const kind = /^(assistant|gpt|model|chosen)$/.test(role) ? "said" : "asked";
  return element(
    "div",
    { class: `turn ${kind}` },
    element("span", { class: "role" }, visible(role)),
    passage(text, {}, most),
  );
}

// The parts of a row: [role, text].
export function partsOf(row, format) {
  const parts = [];
  const add = (value, role) => {
    if (value === undefined || value === null) return;
    if (Array.isArray(value) && value.every((item) => item !== null && typeof item === "object")) {
      for (const message of value) {
        parts.push([String(message.role ?? message.from ?? role), words(message)]);
      }
    } else parts.push([role, shown(value)]);
  };
  if (format.messages_field && row[format.messages_field] !== undefined) {
    add(row[format.messages_field], "text");
  } else if (format.text_field) {
    add(row[format.text_field], "text");
  } else {
    add(row[format.prompt_field], isChat(format) ? "user" : "prompt");
    add(row[format.response_field], isChat(format) ? "assistant" : "response");
  }
  if (format.rejected_field) add(row[format.rejected_field], "rejected");
  if (format.label_field) add(row[format.label_field], "class");
  if (parts.length === 0) parts.push(["row", shown(row)]);
  return parts;
}

// A row for reading; of each part `most` characters at first.
export function saidBy(row, format, most) {
  const parts = partsOf(row, format);
  const box = element("div", { class: "row-text" });
  if (!isChat(format) && !format.label_field && !format.rejected_field && parts.length <= 2) {
    const [asked, answer] = parts.length === 2 ? parts.map(([, text]) => text) : ["", parts[0][1]];
    if (asked.length + answer.length <= most && /\s$/.test(asked) !== /^\s/.test(answer)) {
      const prompt = element("span", { class: "unscored" }, visible(asked));
      box.append(element("div", { class: "text", dir: "auto" }, prompt, visible(answer)));
      return box;
    }
    if (asked !== "") box.append(passage(asked, { class: "text unscored" }, most));
    box.append(passage(answer, {}, most));
    return box;
  }
  box.append(...parts.map(([role, text]) => turn(role, text, most)));
  return box;
}

const LONGEST_CHIP = 48; // characters of a field that is shown beside a row

// Short fields of a row beside what it says: [name, text].
export function fieldsOf(row, format, most = 4) {
  const kinds = ["prompt", "response", "text", "messages", "image", "rejected", "label", "key"];
  const own = new Set(kinds.map((kind) => format[`${kind}_field`]));
  const found = [];
  for (const [name, value] of Object.entries(row)) {
    if (found.length >= most) break;
    const isShort = typeof value === "string" && value !== "" && value.length <= LONGEST_CHIP;
    if (!own.has(name) && (isShort || ["number", "boolean"].includes(typeof value))) {
      found.push([name, String(value)]);
    }
  }
  return found;
}

export function chips(pairs) {
  return pairs.map(([name, value]) =>
    element("span", { class: "chip" }, `${visible(name)} `, element("b", {}, visible(value))),
  );
}
