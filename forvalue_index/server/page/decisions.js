// What is decided about suspects: kept by the server if it may write, else in this browser.

import { blob, get, put } from "./api.js";
import { keep } from "./save.js";

const KINDS = ["keep", "drop", "fix"];

export async function openDecisions(info, signal) {
  const found = await get("decisions", {}, signal);
  const place = `forvalue-decisions-${info.fingerprint}`;
  const decided = new Map(found.decisions.map((each) => [each.key, each]));
  const undone = []; // [key, what was decided before]
  if (!found.writable) {
    for (const each of stored(place)) decided.set(each.key, each);
  }

  async function set(key, decision, row = null) {
    undone.push([key, decided.get(key)]);
    try {
      await write(key, decision === null ? undefined : { key, decision, row, note: "" });
    } catch (error) {
      undone.pop();
      throw error;
    }
  }

  async function write(key, now) {
    if (found.writable) {
      await put("decisions", { key, decision: now?.decision ?? null, row: now?.row ?? null });
    }
    if (now === undefined) decided.delete(key);
    else decided.set(key, now);
    if (!found.writable) localStorage.setItem(place, JSON.stringify([...decided.values()]));
  }

  // Takes the last decision back and returns its key; null: there is none.
  async function undo() {
    const last = undone.at(-1);
    if (last === undefined) return null;
    await write(...last);
    undone.pop();
    return last[0];
  }

  function counts() {
    const n = Object.fromEntries(KINDS.map((kind) => [kind, 0]));
    for (const { decision } of decided.values()) n[decision]++;
    return n;
  }

  // Saves "drop.txt" or "fix.jsonl".
  async function download(name) {
    keep(name, found.writable ? await blob(`decisions/${name}`, {}, signal) : new Blob([text(name)]));
  }

  function text(name) {
    const all = [...decided.values()];
    // Without a field for keys a fixed row gets another key, so that the one before is dropped.
    const isDropped = ({ decision }) =>
      decision === "drop" || (decision === "fix" && !info.config.format.key_field);
    const lines =
      name === "drop.txt"
        ? all.filter(isDropped).map(({ key }) => key)
        : all.filter(({ decision }) => decision === "fix").map(({ row }) => JSON.stringify(row));
    return lines.map((line) => `${line}\n`).join("");
  }

  const of = (key) => decided.get(key);
  return { of, set, undo, counts, download, isOnServer: found.writable };
}

function stored(place) {
  try {
    const all = JSON.parse(localStorage.getItem(place) ?? "[]");
    return all.filter((each) => KINDS.includes(each.decision) && typeof each.key === "string");
  } catch {
    return [];
  }
}
