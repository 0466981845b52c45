// What is shown, as a file: JSON, or CSV for a spreadsheet; and a link to it.

import { blob } from "./api.js";
import { button, element, say, trying } from "./dom.js";

export function keep(name, content) {
  const url = URL.createObjectURL(content);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function cell(value) {
  if (value === null || value === undefined) return "";
  let text = typeof value === "object" ? JSON.stringify(value) : String(value);
  // A spreadsheet would run such a text as a formula.
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function csv(rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = rows.map((row) => names.map((name) => cell(row[name])).join(","));
  return [names.map(cell).join(","), ...lines].join("\r\n") + "\r\n";
}

// Buttons that save what `json` returns, and what `rows` returns as a table.
export function saveButtons(name, json, rows) {
  return element(
    "span",
    { class: "save", role: "group", "aria-label": "Save what is shown" },
    button("JSON", () => keep(`${name}.json`, file(JSON.stringify(json(), null, 1), "json")), {
      class: "quiet small",
    }),
    button("CSV", () => keep(`${name}.csv`, file(csv(rows()), "csv")), { class: "quiet small" }),
    button("Copy link", copyLink, { class: "quiet small" }),
  );
}

// Buttons that save what the server writes at a path.
export function downloadButtons(name, path, parameters, signal) {
  const of = (format) =>
    button(
      format.toUpperCase().replace("JSONL", "JSON lines"),
      () =>
        trying(async () => {
          say("Downloading\u2026");
          keep(`${name}.${format}`, await blob(path, { ...parameters(), format }, signal));
          say("");
        }),
      { class: "quiet small" },
    );
  return element(
    "span",
    { class: "save", role: "group", "aria-label": "Save what is shown" },
    of("jsonl"),
    of("csv"),
    button("Copy link", copyLink, { class: "quiet small" }),
  );
}

function file(text, kind) {
  return new Blob([text], { type: kind === "json" ? "application/json" : "text/csv" });
}

function copyLink() {
  trying(async () => {
    if (!navigator.clipboard) throw new Error("Copy the address of this page: it is the link.");
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
    setTimeout(() => say(""), 2500);
  });
}
