// Texts whose tokens are coloured by what they contributed.

import { button, element, visible } from "./dom.js";

const FAINT = 0.04; // share of the largest contribution that is not coloured
const FOLDED = 320; // characters of unscored text before what is scored; more is folded away
const KEPT = 140; // characters of it that stay
const REPEATED = 4; // equal unscored tokens in a row, such as an image's, that are shown as one

// `tokens` are [text, contribution or null]. Texts of one character that is spread over several
// tokens are joined by the server's rule: all but the last of them are "".
// `turns` are whose words which tokens are: [first, end, role]. `rejected` is the token with which
// a text begins whose influence is subtracted. `of` gives a scored token more attributes.
export function coloured(tokens, { turns, rejected, shared = new Set(), of = () => ({}) } = {}) {
  const box = element("div", { class: "text tokens", dir: "auto" });
  const underlined = sharedTokens(tokens, shared);
  const spans = spansOf(tokens, underlined, of);
  const draw = (whole) => {
    box.replaceChildren();
    if (turns) drawTurns(box, spans, turns, rejected, whole);
    else drawText(box, spans, rejected, whole);
    const hidden = spans.filter((span) => span && !span.isConnected && !box.contains(span));
    const n = hidden.reduce((sum, span) => sum + span.textContent.length, 0);
    if (n > 0) {
      const what = turns ? "of the chat template" : "before";
      const title = `\u2026 ${n.toLocaleString("en")} characters ${what}`;
      const more = button(title, () => draw(true), { class: "link fold" });
      if (turns) box.append(more);
      else box.prepend(more, " ");
    }
  };
  draw(false);
  return box;
}

// An element for each token that has a text, at its place.
function spansOf(tokens, underlined, of) {
  const most = tokens.reduce((most, [, value]) => Math.max(most, Math.abs(value ?? 0)), 1e-300);
  const spans = Array(tokens.length);
  let waiting = 0;
  for (let place = 0; place < tokens.length; place++) {
    const [text, value] = tokens[place];
    waiting += value ?? 0;
    if (text === "") continue;
    const share = waiting / most;
    waiting = 0;
    const kinds = [value === null ? "unscored" : "scored"];
    if (Math.abs(share) >= FAINT) kinds.push(share > 0 ? "help" : "hurt");
    if (underlined.has(place)) kinds.push("shared");
    let end = place + 1;
    while (value === null && tokens[end]?.[0] === text && tokens[end][1] === null) end++;
    const isRun = end - place >= REPEATED && text.trim() !== "";
    const shown = isRun ? `${text} \u00d7 ${end - place} ` : text;
    if (isRun) kinds.push("run");
    const more = value === null ? {} : of(place, share);
    const span = element("span", { class: kinds.join(" "), ...more }, visible(shown));
    if (kinds.length > 1) {
      span.style.setProperty("--share", Math.min(Math.abs(share), 1).toFixed(3));
    }
    spans[place] = span;
    if (isRun) place = end - 1;
  }
  return spans;
}

function drawTurns(box, spans, turns, rejected, whole) {
  const starts = new Map(turns.map(([start, end, role]) => [start, { end, role }]));
  let block = null;
  let until = 0;
  const open = (role) => {
    const title = element("span", { class: "role" }, visible(role));
    block = element("div", { class: `turn ${role === "assistant" ? "said" : "asked"}` }, title);
    box.append(block);
  };
  spans.forEach((span, place) => {
    if (place === rejected) {
      box.append(element("span", { class: "role rejected" }, "rejected"));
      block = null;
    }
    const turn = starts.get(place);
    if (turn) {
      open(turn.role);
      until = turn.end;
    }
    const isOwn = place < until;
    if (!isOwn && !whole && span.classList.contains("unscored")) return;
    if (!isOwn && span.classList.contains("unscored")) span.classList.add("template");
    (block ?? box).append(span);
  });
}

function drawText(box, spans, rejected, whole) {
  const list = spans.filter(Boolean);
  const before = list.findIndex((span) => span.classList.contains("scored"));
  const length = list.slice(0, before).reduce((sum, span) => sum + span.textContent.length, 0);
  let first = 0;
  if (!whole && before > 0 && length > FOLDED) {
    first = before;
    for (let n = 0; first > 0 && n < KEPT; first--) n += list[first - 1].textContent.length;
  }
  list.slice(first).forEach((span) => {
    if (span === spans[rejected]) box.append(element("span", { class: "role" }, "rejected"));
    box.append(span);
  });
}

const WORD = /[\p{L}\p{N}]{4,}/gu; // words that are worth underlining where two texts share them

export function wordsOf(text) {
  return new Set(text.toLowerCase().match(WORD) ?? []);
}

function sharedTokens(tokens, shared) {
  const found = new Set();
  if (shared.size === 0) return found;
  const ends = [];
  let text = "";
  for (const [part] of tokens) ends.push((text += part).length);
  for (const match of text.matchAll(WORD)) {
    if (!shared.has(match[0].toLowerCase())) continue;
    const end = match.index + match[0].length;
    let place = firstAfter(ends, match.index);
    for (; place < ends.length && (place === 0 ? 0 : ends[place - 1]) < end; place++) {
      found.add(place);
    }
  }
  return found;
}

function firstAfter(ends, position) {
  let low = 0;
  let high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] > position) high = middle;
    else low = middle + 1;
  }
  return low;
}
