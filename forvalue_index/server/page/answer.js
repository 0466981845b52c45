// An answer of which words can be marked, by mouse or keyboard, to ask about these only.

import { element, visible } from "./dom.js";

// `changed` is called when other words are marked.
export function markable(changed) {
  const box = element("div", { class: "answer", dir: "auto" });
  let text = "";
  let words = []; // {span, start, stop}
  let range = null; // of marked words: [first, last]

  function show(shown, canMark = true) {
    [text, words, range] = [shown, [], null];
    box.replaceChildren();
    let end = 0;
    const parts = [];
    for (const match of text.matchAll(/\S+/gu)) {
      if (end > 0) parts.push(visible(text.slice(end, match.index)));
      end = match.index + match[0].length;
      const span = element("span", { class: "word" }, visible(match[0]));
      if (canMark) {
        span.setAttribute("role", "button");
        span.setAttribute("tabindex", words.length === 0 ? "0" : "-1");
        span.setAttribute("aria-pressed", "false");
        span.dataset.place = words.length;
      }
      words.push({ span, start: match.index, stop: end });
      parts.push(span);
    }
    box.append(...parts, visible(text.slice(end)));
  }

  function append(more) {
    box.append(visible(more));
  }

  function mark(place, extends_) {
    if (extends_ && range) range = [Math.min(range[0], place), Math.max(range[1], place)];
    else if (range && range[0] === place && range[1] === place) range = null;
    else range = [place, place];
    paint();
    changed();
  }

  function unmark() {
    if (range === null) return;
    range = null;
    paint();
    changed();
  }

  function paint() {
    words.forEach(({ span }, place) => {
      const is = range !== null && place >= range[0] && place <= range[1];
      if (span.getAttribute("aria-pressed") !== String(is)) span.setAttribute("aria-pressed", is);
    });
  }

  function placeOf(target) {
    const word = target.closest?.("[data-place]");
    return word ? Number(word.dataset.place) : null;
  }

  box.addEventListener("click", (event) => {
    const place = placeOf(event.target);
    if (place !== null && getSelection().isCollapsed) mark(place, event.shiftKey);
  });

  box.addEventListener("mouseup", () => {
    const selection = getSelection();
    if (selection.isCollapsed || words[0]?.span.dataset.place === undefined) return;
    const inside = words.flatMap(({ span }, place) =>
      selection.containsNode(span, true) ? [place] : [],
    );
    if (inside.length === 0) return;
    setTimeout(() => selection.removeAllRanges());
    range = [inside[0], inside.at(-1)];
    paint();
    changed();
  });

  box.addEventListener("keydown", (event) => {
    const place = placeOf(event.target);
    if (place === null) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && words[place + step]) {
      event.preventDefault();
      words[place].span.tabIndex = -1;
      words[place + step].span.tabIndex = 0;
      words[place + step].span.focus();
      if (event.shiftKey) {
        range ??= [place, place];
        mark(place + step, true);
      }
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      mark(place, event.shiftKey);
    } else if (event.key === "Escape") unmark();
  });

  // Characters of the marked words. Unicode's are meant; JavaScript counts halves of some.
  function characters() {
    if (range === null) return null;
    const [start, stop] = [words[range[0]].start, words[range[1]].stop];
    const before = [...text.slice(0, start)].length;
    return [before, before + [...text.slice(start, stop)].length];
  }

  // Marks the words of characters, as a link names them.
  function markCharacters(first, end) {
    const starts = [...text];
    const [from, to] = [first, end].map((n) => starts.slice(0, n).join("").length);
    const inside = [...words.keys()].filter((i) => words[i].start < to && words[i].stop > from);
    range = inside.length === 0 ? null : [inside[0], inside.at(-1)];
    paint();
  }

  function marked() {
    return range === null ? null : text.slice(words[range[0]].start, words[range[1]].stop);
  }

  return { box, show, append, unmark, characters, markCharacters, marked, text: () => text };
}
