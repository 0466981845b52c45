// What is asked: a prompt, earlier turns of a conversation, pictures, and an answer if it is given.

import { button, choice, element, labelled, numberField } from "./dom.js";
import { pictureField } from "./pictures.js";
import { isChat } from "./said.js";

const ROLES = [
  ["user", "user"],
  ["assistant", "assistant"],
  ["system", "system"],
];

// `asked` is called when the form is sent.
export function composer(info, given, asked) {
  const format = info.config.format;
  const isClassifier = Boolean(format.label_field);
  const withTurns = isChat(format) && !isClassifier;
  const pictures = info.images && !isClassifier ? pictureField() : null;
  const turns = element("div", { class: "turns wide" });
  const prompt = area("prompt", given.prompt ?? "", { rows: 3, required: pictures === null });
  const response = area("response", given.own ? given.response : "", {
    rows: isClassifier ? 1 : 2,
    required: isClassifier,
    placeholder: isClassifier ? "" : "Empty: the model answers",
  });
  const stop = button("Stop", () => {}, { class: "quiet", hidden: true });
  const more = element(
    "details",
    { class: "wide", open: Boolean(given.own) },
    element("summary", {}, "Your own answer, and options"),
    labelled("Answer", response, "Given, the model does not answer: ask why it would say this."),
    element(
      "div",
      { class: "line" },
      numberField("max_new_tokens", "Longest answer, in tokens", 256, 1, 1024),
      numberField("temperature", "Temperature", 0, 0, 10, "any"),
    ),
  );
  const send = element("button", {}, isClassifier ? "Show the rows behind it" : "Ask the model");
  const form = element(
    "form",
    { class: "card ask", onsubmit: submitted, onkeydown: onKey },
    withTurns && element("div", { class: "wide" }, turns, turnButton()),
    pictures?.box,
    labelled(isClassifier ? "Text" : "Prompt", prompt, null, { class: "wide" }),
    isClassifier ? labelled("Class", response, null, { class: "wide" }) : more,
    element("p", { class: "buttons" }, stop, send),
  );

  function area(name, value, properties) {
    return element("textarea", { name, dir: "auto", ...properties }, value);
  }

  function turnButton() {
    return button("Add an earlier turn", () => addTurn("user", "").focus(), { class: "link" });
  }

  function addTurn(role, text) {
    const own = area("turn", text, { rows: 1, "aria-label": "What was said in this turn" });
    const box = element(
      "div",
      { class: "earlier" },
      choice("role", ROLES, role, { "aria-label": "Who speaks" }),
      own,
      button("Remove", () => box.remove(), { class: "link" }),
    );
    turns.append(box);
    return own;
  }

  function submitted(event) {
    event.preventDefault();
    asked(state());
  }

  function onKey(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  }

  // What is in the form; `response` is "" where the model answers.
  function state() {
    const found = new FormData(form);
    const said = found.getAll("turn");
    return {
      prompt: prompt.value,
      response: response.value,
      turns: found.getAll("role").map((role, i) => [role, said[i]]),
      max_new_tokens: Number(found.get("max_new_tokens") ?? 256),
      temperature: Number(found.get("temperature") ?? 0),
    };
  }

  // Begins the next turn behind an answer.
  function goOn(answer) {
    addTurn("user", prompt.value);
    addTurn("assistant", answer);
    prompt.value = "";
    response.value = "";
    pictures?.set([]);
    prompt.focus();
  }

  function ask(text) {
    prompt.value = text;
    form.requestSubmit();
  }

  for (const [role, text] of given.turns ?? []) addTurn(role, text);
  return { form, stop, state, goOn, ask, pictures, withTurns, isClassifier };
}

// The body of a request about what is asked, and if there is one, its answer.
export function queryOf(info, { prompt, turns, images = [] }, response = null) {
  const format = info.config.format;
  if (format.label_field) return { text: prompt, label: response ?? "" };
  if (turns.length === 0) {
    const own = response === null ? { prompt } : { prompt, response };
    return images.length === 0 ? own : { ...own, images };
  }
  const content =
    images.length === 0
      ? prompt
      : [...images.map((image) => ({ type: "image", image })), { type: "text", text: prompt }];
  const messages = [...turns, ["user", content]].map(([role, said]) => ({ role, content: said }));
  if (!format.messages_field) {
    const answered = response === null ? {} : { [format.response_field]: response };
    return { row: { [format.prompt_field]: messages, ...answered } };
  }
  if (response !== null) messages.push({ role: "assistant", content: response });
  return { row: { [format.messages_field]: messages } };
}
