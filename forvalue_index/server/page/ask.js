// A prompt, the model's answer, and the training rows behind it or behind a part of it.

import { events, post } from "./api.js";
import { element, say, signed, visible } from "./dom.js";
import { METRICS } from "./metrics.js";
import { conditionsField, conditionsOf, link } from "./rows.js";
import { coloured, explained, wordsOf } from "./tokens.js";

const HITS = 10;
const CHIPS = 4; // fields of a row that are shown beside it
const LONGEST_CHIP = 40; // characters

export function showAsk(main, info, parameters, signal) {
  const isClassifier = Boolean(info.config.format.label_field);
  const answer = element("div", { class: "answer", dir: "auto" });
  const marked = element("p", { class: "marked" });
  const hits = element("div", { class: "hits" });
  const sentence = element("p", { class: "soft", id: "metric-says" });
  const metric = element(
    "select",
    { name: "metric", "aria-describedby": "metric-says", onchange: explainMetric },
    Object.entries(METRICS).map(([name, { title }]) =>
      element("option", { value: name, selected: name === parameters.get("metric") }, title),
    ),
  );
  const stop = element("button", { type: "button", class: "quiet", hidden: true }, "Stop");
  const form = element(
    "form",
    { class: "ask", onsubmit: submitted },
    element(
      "label",
      { class: "wide" },
      isClassifier ? "Text" : "Prompt",
      element(
        "textarea",
        { name: "prompt", rows: 3, required: true, dir: "auto", onkeydown: onEnter },
        parameters.get("prompt") ?? "",
      ),
    ),
    element(
      "label",
      { class: "wide" },
      isClassifier ? "Class" : "Answer",
      element(
        "textarea",
        {
          name: "response",
          rows: 1,
          dir: "auto",
          required: isClassifier,
          placeholder: isClassifier ? "" : "empty: the model answers",
        },
        parameters.get("response") ?? "",
      ),
    ),
    element("label", {}, "Metric", metric),
    sentence,
    element(
      "details",
      {},
      element("summary", {}, "More"),
      conditionsField(info, conditionsOf(parameters.get("where") ?? "")),
      number("k", "Rows of each kind", HITS, 1, 100),
      number("max_new_tokens", "Longest answer, in tokens", 256, 1, 1024),
      number("temperature", "Temperature", 0, 0, 10, "any"),
      element(
        "label",
        { class: "check" },
        element("input", { type: "checkbox", name: "exact" }),
        "Exact scores (runs the best candidates again)",
      ),
    ),
    element("p", { class: "buttons" }, element("button", {}, "Ask"), stop),
  );
  let asked = null; // the prompt and the response of which the hits are shown
  let words = []; // of the answer: {span, start, stop}
  let range = null; // of marked words: [first, last]
  let running = null;
  let waiting = null;

  function explainMetric() {
    sentence.textContent = METRICS[metric.value].says;
  }

  function onEnter(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  }

  function choice() {
    const given = new FormData(form);
    const found = {
      k: Number(given.get("k")),
      metric: given.get("metric"),
      where: conditionsOf(given.get("where")),
    };
    if (given.get("exact") !== null) found.exact = true;
    return found;
  }

  function begin() {
    running?.abort();
    clearTimeout(waiting);
    running = new AbortController();
    const own = running;
    signal.addEventListener("abort", () => own.abort(), { signal: own.signal });
    return own.signal;
  }

  async function submitted(event) {
    event.preventDefault();
    const given = new FormData(form);
    const [prompt, response] = [given.get("prompt"), given.get("response")];
    const chosen = choice();
    const permanent = { prompt, response, metric: chosen.metric, where: chosen.where.join("\n") };
    history.replaceState(null, "", link("ask", permanent));
    asked = null;
    range = null;
    marked.replaceChildren();
    hits.replaceChildren();
    answer.replaceChildren();
    await working(async (own) => {
      if (isClassifier) {
        asked = { text: prompt, label: response };
        showAnswer(response);
        await find(own);
      } else if (response !== "") {
        asked = { prompt, response };
        showAnswer(response);
        await find(own);
      } else {
        const more = {
          max_new_tokens: Number(given.get("max_new_tokens")),
          temperature: Number(given.get("temperature")),
        };
        await generate({ prompt, ...more, ...chosen }, own);
      }
    });
  }

  async function generate(request, own) {
    say("The model answers\u2026");
    for await (const [name, data] of events("ask", request, own)) {
      if (name === "token") answer.append(visible(data.text));
      else if (name === "answer") {
        asked = { prompt: request.prompt, response: data.response };
        showAnswer(data.response);
        if (data.cut_off) answer.append(element("span", { class: "soft" }, " (cut off)"));
        say("Looking for the rows behind it\u2026");
      } else if (name === "hits") {
        await find(own, data.hits);
      } else if (name === "error") throw new Error(data.error);
    }
  }

  // Shows the rows behind what is asked about; `helped` are those that were found already.
  async function find(own, helped = undefined) {
    const request = { ...asked, ...part(), ...choice(), highlight: true };
    say("Looking for the rows behind it\u2026");
    helped ??= (await post("query", request, own)).hits;
    const { linear } = METRICS[request.metric];
    const hurt = linear ? (await post("query", { ...request, opponents: true }, own)).hits : [];
    const shown = linear
      ? [
          ["Helped: made it more likely", helped.filter((hit) => hit.score > 0)],
          ["Hurt: made it less likely", hurt.filter((hit) => hit.score < 0)],
        ]
      : [["Found, the best first", helped]];
    const most = Math.max(...shown.flatMap(([, list]) => list.map((hit) => Math.abs(hit.score))));
    const target = range === null ? answer.textContent : markedText();
    hits.classList.toggle("one", !linear);
    hits.replaceChildren(
      legend(),
      ...shown.map(([title, list]) => group(title, list, most, wordsOf(target))),
    );
    say("");
  }

  function group(title, list, most, shared) {
    const items = list.map((hit) => card(hit, most, shared));
    return element(
      "section",
      {},
      element("h3", {}, title),
      items.length > 0
        ? element("ol", {}, items)
        : element("p", { class: "empty" }, "No row. Are there conditions under \u201cMore\u201d?"),
    );
  }

  function card(hit, most, shared) {
    const side = sideOf(hit);
    const bar = element("span", { class: `bar ${side}` });
    bar.style.setProperty("--share", (Math.abs(hit.score) / most).toFixed(3));
    const query = { ...asked, ...part() };
    const open = element(
      "button",
      { type: "button", class: "link", "aria-expanded": "false", onclick: toggle },
      "Token by token",
    );
    const below = element("div");
    const item = element(
      "li",
      { class: "hit" },
      element(
        "p",
        { class: "head" },
        element("strong", { class: side }, signed(hit.score)),
        element("span", { class: "track", "aria-hidden": "true" }, bar),
        element("a", { href: link("row", { key: hit.key }), class: "key" }, visible(hit.key)),
      ),
      coloured(hit.tokens, { shared, rejected: hit.rejected }),
      element("p", { class: "foot" }, chips(hit), isClassifier ? null : open),
      below,
    );

    async function toggle() {
      const isOpen = below.childElementCount > 0;
      open.setAttribute("aria-expanded", String(!isOpen));
      if (isOpen) return below.replaceChildren();
      try {
        below.replaceChildren(await explained(query, hit.key, signal));
      } catch (error) {
        open.setAttribute("aria-expanded", "false");
        if (error.name !== "AbortError") say(error.message, true);
      }
    }
    return item;
  }

  function chips(hit) {
    const format = info.config.format;
    const own = new Set(
      ["prompt", "response", "text", "messages", "key"].map((kind) => format[`${kind}_field`]),
    );
    const found = Object.entries(hit.parts ?? {}).map(([name, value]) => [name, signed(value)]);
    for (const [name, value] of Object.entries(hit.sample)) {
      if (found.length >= CHIPS + Object.keys(hit.parts ?? {}).length) break;
      const isShort = typeof value === "string" && value !== "" && value.length <= LONGEST_CHIP;
      if (!own.has(name) && (isShort || ["number", "boolean"].includes(typeof value))) {
        found.push([name, String(value)]);
      }
    }
    return found.map(([name, value]) =>
      element("span", { class: "chip" }, `${visible(name)} `, element("b", {}, visible(value))),
    );
  }

  // -- the answer, of which words can be marked ----------------------------------------------

  function showAnswer(text) {
    words = [];
    answer.replaceChildren();
    let end = 0;
    for (const match of text.matchAll(/\S+/gu)) {
      const place = words.length;
      answer.append(visible(text.slice(end, match.index)));
      end = match.index + match[0].length;
      const span = element("span", { class: "word" }, visible(match[0]));
      if (!isClassifier) {
        span.setAttribute("role", "button");
        span.setAttribute("tabindex", place === 0 ? "0" : "-1");
        span.setAttribute("aria-pressed", "false");
        span.addEventListener("click", (event) => mark(place, event.shiftKey));
        span.addEventListener("keydown", (event) => onKey(event, place));
      }
      words.push({ span, start: match.index, stop: end });
      answer.append(span);
    }
    answer.append(visible(text.slice(end)));
    if (!isClassifier) showMarked();
  }

  function onKey(event, place) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && words[place + step]) {
      event.preventDefault();
      words[place].span.tabIndex = -1;
      words[place + step].span.tabIndex = 0;
      words[place + step].span.focus();
      if (event.shiftKey) mark(place + step, true);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      mark(place, event.shiftKey);
    } else if (event.key === "Escape") unmark();
  }

  answer.addEventListener("mouseup", () => {
    const selection = getSelection();
    if (selection.isCollapsed || !asked) return;
    const inside = words.flatMap(({ span }, place) =>
      selection.containsNode(span, true) ? [place] : [],
    );
    if (inside.length < 2 || isClassifier) return;
    selection.removeAllRanges();
    range = [inside[0], inside.at(-1)];
    changed();
  });

  function mark(place, extends_) {
    if (!asked) return;
    if (extends_ && range) range = [Math.min(range[0], place), Math.max(range[1], place)];
    else if (range && range[0] === place && range[1] === place) range = null;
    else range = [place, place];
    changed();
  }

  function unmark() {
    if (range === null) return;
    range = null;
    changed();
  }

  function changed() {
    showMarked();
    const own = begin();
    waiting = setTimeout(() => working((later) => find(later), own), 250);
  }

  function showMarked() {
    words.forEach(({ span }, place) => {
      const is = range !== null && place >= range[0] && place <= range[1];
      span.setAttribute("aria-pressed", String(is));
    });
    if (range === null) {
      marked.replaceChildren(
        "Choose a word of the answer to ask about it alone; with Shift, as far as another.",
      );
      return;
    }
    marked.replaceChildren(
      "Asked about: ",
      element("b", {}, visible(markedText())),
      " ",
      element("button", { type: "button", class: "link", onclick: unmark }, "the whole answer"),
    );
  }

  function markedText() {
    return asked.response.slice(words[range[0]].start, words[range[1]].stop);
  }

  function part() {
    if (range === null) return {};
    const [start, stop_] = [words[range[0]].start, words[range[1]].stop];
    // The server counts characters as Unicode does, JavaScript counts halves of some.
    const before = [...asked.response.slice(0, start)].length;
    const length = [...asked.response.slice(start, stop_)].length;
    return { characters: [before, before + length] };
  }

  async function working(work, own = begin()) {
    stop.hidden = false;
    main.setAttribute("aria-busy", "true");
    stop.onclick = () => running.abort();
    try {
      await work(own);
    } catch (error) {
      if (own.aborted) {
        if (own === running.signal) say("Stopped.");
      } else say(error.message, true);
    } finally {
      if (own === running.signal) {
        stop.hidden = true;
        main.removeAttribute("aria-busy");
      }
    }
  }

  explainMetric();
  main.replaceChildren(
    element("h2", { class: "hidden" }, "Ask the model"),
    element("div", { class: "asking" }, form, element("section", { class: "said" }, answer, marked)),
    hits,
  );
}

// Whether a row helped or hurt. A score of words does not say it; its influence does, if it is known.
function sideOf(hit) {
  const influence = hit.parts ? (hit.parts.influence ?? 0) : hit.score;
  return influence === 0 ? "" : influence > 0 ? "help" : "hurt";
}

function number(name, title, value, min, max, step = 1) {
  const input = element("input", { type: "number", name, value, min, max, step, required: true });
  return element("label", {}, title, input);
}

function legend() {
  return element(
    "p",
    { class: "legend soft" },
    element("span", { class: "sample help" }, "green"),
    " raised the likelihood, ",
    element("span", { class: "sample hurt" }, "red"),
    " lowered it; grey was read but not scored; ",
    element("span", { class: "shared" }, "dotted"),
    " words are in the answer too.",
  );
}
