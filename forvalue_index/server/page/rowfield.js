// A field for rows: JSON lines that are pasted, or a file.

import { element, labelled, say } from "./dom.js";

export function rowField(title, name, info, says) {
  const { prompt_field: asked, response_field: response, text_field: text, messages_field: messages } = info.config.format;
  const example = messages
    ? { [messages]: [{ role: "user", content: "\u2026" }, { role: "assistant", content: "\u2026" }] }
    : text
      ? { [text]: "\u2026" }
      : { [asked]: "\u2026", [response]: "\u2026" };
  const area = element("textarea", {
    name,
    rows: 4,
    dir: "auto",
    spellcheck: "false",
    placeholder: `${JSON.stringify(example)}\none row on each line`,
  });
  const file = element("input", { type: "file", accept: ".jsonl,.json,.ndjson,application/json", "aria-label": `${title}: a file` });
  file.addEventListener("change", async () => {
    if (file.files.length === 0) return;
    area.value = await file.files[0].text();
    say("");
  });
  const box = element("div", { class: "wide" }, labelled(title, area, says), element("p", { class: "or soft" }, "or a file of JSON lines: ", file));

  // The rows.
  function rows() {
    const given = area.value.trim();
    if (given.startsWith("[")) return JSON.parse(given);
    return given
      .split("\n")
      .map((line, i) => [line.trim(), i + 1])
      .filter(([line]) => line !== "")
      .map(([line, number]) => read(line, number));
  }

  return { box, rows };
}

function read(line, number) {
  let value;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw new Error(`Line ${number} is not JSON (${error.message}): write one row on each line.`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new Error(`Line ${number} is no JSON object: write a row as {"field": "value"}.`);
  }
  return value;
}
