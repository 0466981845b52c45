// A prompt, the model's answer, and the training rows behind it or behind a part of it.

import { events, get } from "./api.js";
import { markable } from "./answer.js";
import { composer, queryOf } from "./composer.js";
import { button, element, labelled, say, visible } from "./dom.js";
import { remember } from "./links.js";
import { filesOf } from "./pictures.js";
import { results } from "./results.js";
import { partsOf } from "./said.js";

const PAUSE = 250; // milliseconds after a word is marked, before one more may be
const EXAMPLES = 3;

export async function showAsk(main, info, parameters, signal) {
  const answer = markable(() => changed());
  const marked = element("p", { class: "marked soft" });
  const cutOff = element("p", { class: "soft", hidden: true }, "The answer was cut off: see \u201coptions\u201d.");
  const after = element("div", { class: "after" });
  const found = results(info, parameters, () => changed(), signal);
  const form = composer(info, givenBy(parameters), submitted);
  let asked = null; // {prompt, turns, images, own} of which the hits are shown
  let instead = parameters.get("instead");
  let picture = parameters.get("picture"); // key of the row whose pictures are asked about
  let running = null;
  let waiting = null;

  const said = element(
    "section",
    { class: "card said-box", "aria-label": "The answer" },
    element("span", { class: "role" }, form.isClassifier ? "class" : "answer"),
    answer.box,
    cutOff,
    marked,
    after,
  );
  main.replaceChildren(
    element("h1", { class: "hidden" }, "Ask the model"),
    element("div", { class: "asking" }, element("div", { class: "side" }, form.form, said), found.box),
  );
  form.pictures?.box.addEventListener("change", () => (picture = null));

  function begin() {
    running?.abort();
    clearTimeout(waiting);
    running = new AbortController();
    const own = running;
    signal.addEventListener("abort", () => own.abort(), { signal: own.signal });
    return own.signal;
  }

  async function submitted(given) {
    instead = null;
    answer.show("");
    found.show();
    found.clear();
    after.replaceChildren();
    marked.replaceChildren();
    cutOff.hidden = true;
    await working(async (own) => {
      const images = (await form.pictures?.uris()) ?? [];
      asked = { ...given, images, own: given.response !== "" };
      if (!asked.own) await generate(own);
      else answered(given.response);
      await find(own);
    });
  }

  async function generate(own) {
    const { max_new_tokens, temperature } = asked;
    const request = { ...queryOf(info, asked), max_new_tokens, temperature, k: 1 };
    say("The model answers\u2026");
    let response = null;
    for await (const [name, data] of events("ask", request, own)) {
      if (name === "token") answer.append(data.text);
      else if (name === "error") throw new Error(data.error);
      else if (name === "answer") {
        response = data.response;
        cutOff.hidden = !data.cut_off;
        break; // the hits are asked for with the choices beside it
      }
    }
    if (response === null) throw new Error("The answer broke off: ask again.");
    answered(response);
  }

  function answered(response) {
    asked.response = response;
    answer.show(response, !form.isClassifier);
    showMarked();
    showAfter();
  }

  function query() {
    const part = answer.characters();
    const own = queryOf(info, asked, asked.response);
    if (part !== null) return { ...own, characters: part };
    return isContrast() ? { ...own, instead } : own;
  }

  // Marked words are asked about by themselves: the other answer has none that belong to them.
  function isContrast() {
    return instead !== null && answer.marked() === null;
  }

  async function find(own) {
    keepAddress();
    const target = answer.marked() ?? asked.response;
    await found.find(query(), target, isContrast(), own);
  }

  function keepAddress() {
    const { prompt, turns, response, own } = asked;
    const part = answer.characters();
    remember("ask", {
      prompt,
      turns: turns.length > 0 ? JSON.stringify(turns) : "",
      response,
      own: own ? "1" : "",
      part: part === null ? "" : part.join("-"),
      instead: instead ?? "",
      picture: picture ?? "",
      ...found.choices(),
    });
  }

  // Other words are marked, or other hits are wanted.
  function changed() {
    if (!asked?.response) return;
    showMarked();
    const own = begin();
    waiting = setTimeout(() => working((later) => find(later), own), PAUSE);
  }

  function showMarked() {
    if (form.isClassifier) return;
    const part = answer.marked();
    const hint = "Mark words to ask about these only: click or drag, or use the arrow keys and Enter.";
    marked.replaceChildren(
      ...(part === null
        ? [hint]
        : [
            "Asked about: ",
            element("b", {}, visible(part)),
            " ",
            button("the whole answer", () => answer.unmark(), { class: "link" }),
          ]),
    );
  }

  // What one can do with an answer: ask why it is not another one, or go on.
  function showAfter() {
    if (form.isClassifier) return;
    const text = element("textarea", { name: "instead", rows: 2, dir: "auto", required: true }, instead ?? asked.response);
    const compare = element(
      "form",
      { onsubmit: compared },
      labelled("Edit the answer: why the first, and not this?", text, null, { class: "wide" }),
      element("p", { class: "buttons" }, instead === null ? null : button("Only the first", alone, { class: "quiet" }), element("button", { class: "quiet" }, "Compare")),
    );
    const why = element("details", { open: instead !== null }, element("summary", {}, "Why this and not that?"), compare);
    const goOn = form.withTurns ? button("Go on with the conversation", () => form.goOn(asked.response), { class: "link" }) : null;
    after.replaceChildren(why, ...(goOn ? [goOn] : []));
    if (instead !== null) why.append(difference());

    function compared(event) {
      event.preventDefault();
      if (text.value === asked.response) return say("Edit the answer first: both are the same.", true);
      // A model that begins an answer with a space begins the other one with it, too.
      const space = /^\s*/.exec(asked.response)[0];
      instead = /^\s/.test(text.value) ? text.value : space + text.value;
      showAfter();
      return answer.marked() === null ? changed() : answer.unmark();
    }

    function alone() {
      instead = null;
      showAfter();
      changed();
    }
  }

  function difference() {
    const words = (text) => text.match(/\s*\S+/gu) ?? [];
    const [first, other] = [words(asked.response), words(instead)];
    const marks = (own, others) => {
      const known = new Set(others.map((word) => word.trim()));
      return own.map((word) => (known.has(word.trim()) ? visible(word) : element("mark", {}, visible(word))));
    };
    return element(
      "dl",
      { class: "facts versus" },
      element("dt", {}, "this"),
      element("dd", { dir: "auto" }, marks(first, other)),
      element("dt", {}, "not that"),
      element("dd", { dir: "auto" }, marks(other, first)),
    );
  }

  async function working(work, own = begin()) {
    form.stop.hidden = false;
    form.stop.onclick = () => running.abort();
    main.setAttribute("aria-busy", "true");
    try {
      await work(own);
    } catch (error) {
      if (own.aborted) {
        if (own === running.signal && !signal.aborted) say("Stopped.");
      } else say(error.message, true);
    } finally {
      if (own === running.signal) {
        form.stop.hidden = true;
        main.removeAttribute("aria-busy");
      }
    }
  }

  async function restore() {
    const given = form.state();
    if (picture !== null && form.pictures) {
      const { row } = await get("row", { key: picture }, signal);
      form.pictures.set(await filesOf(picture, row, info.config.format, signal));
    }
    const response = parameters.get("response");
    if (response === null) return welcome();
    const images = (await form.pictures?.uris()) ?? [];
    asked = { ...given, images, own: parameters.get("own") === "1" };
    answered(response);
    const part = /^(\d+)-(\d+)$/.exec(parameters.get("part") ?? "");
    if (part) answer.markCharacters(Number(part[1]), Number(part[2]));
    showMarked();
    return working((own) => find(own));
  }

  async function welcome() {
    const box = element(
      "div",
      { class: "welcome" },
      element("h2", {}, "Which training rows drove an answer?"),
      element(
        "p",
        {},
        form.isClassifier
          ? "Give a text and a class: the rows that made this class more likely, and those that made it less likely, appear here."
          : "Ask the model, or give an answer of your own. The rows that made the answer more likely, and those that made it less likely, appear here.",
      ),
    );
    found.show(box);
    if (form.isClassifier || form.pictures || parameters.get("prompt")) return;
    const { rows } = await get("rows", { limit: EXAMPLES }, signal);
    const prompts = rows.map(({ row }) => partsOf(row, info.config.format)).filter((parts) => parts.length > 1);
    const texts = prompts.map((parts) => parts.find(([role]) => /user|prompt/.test(role))?.[1] ?? "");
    const usable = texts.filter((text) => text !== "" && text.length < 200);
    if (usable.length === 0) return;
    box.append(
      element("p", { class: "soft" }, "Prompts of the first rows, to try:"),
      element("ul", {}, usable.map((text) => element("li", {}, button(visible(text), () => form.ask(text), { class: "link" })))),
    );
  }

  await restore();
}

function givenBy(parameters) {
  let turns = [];
  try {
    turns = JSON.parse(parameters.get("turns") ?? "[]").map(([role, text]) => [String(role), String(text)]);
  } catch {
    say("The link is damaged: the earlier turns cannot be read.", true);
  }
  const own = parameters.get("own") === "1";
  return { prompt: parameters.get("prompt"), response: parameters.get("response"), turns, own };
}
