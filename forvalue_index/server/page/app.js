// Which view is shown: the part of the address after # says it, so that each has a link.

import { get, hasToken, keepToken, takeToken } from "./api.js";
import { count, element, labelled, say, visible } from "./dom.js";
import { openedAt } from "./links.js";
import { showAbout } from "./about.js";
import { showAsk } from "./ask.js";
import { showReview } from "./review.js";
import { showRow } from "./row.js";
import { showRows } from "./rows.js";
import { showValue } from "./value.js";

const VIEWS = {
  ask: [showAsk, "Ask the model"],
  rows: [showRows, "Training rows"],
  row: [showRow, "Row"],
  value: [showValue, "Value"],
  review: [showReview, "Review"],
  about: [showAbout, "About this index"],
};
const main = document.getElementById("main");
let leaving = new AbortController();

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const signal = leaving.signal;
  takeToken();
  const [name, parameters] = openedAt();
  const view = Object.hasOwn(VIEWS, name) ? name : "ask";
  for (const link of document.querySelectorAll("nav a")) {
    const own = link.getAttribute("href") === `#/${view === "row" ? "rows" : view}`;
    if (own) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  say("");
  const [open, title] = VIEWS[view];
  main.replaceChildren(element("h1", { class: "hidden" }, title)); // until the view has its own
  main.className = view;
  try {
    const info = await get("info", {}, signal);
    const what = `${count(info.samples, "training row")} of ${info.model}`;
    document.getElementById("what").textContent = visible(what);
    await open(main, info, parameters, signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) return askForToken();
    if (main.childElementCount === 1) {
      main.append(element("p", { class: "empty" }, "There is nothing to show."));
    }
    say(error.message, true);
  }
  if (document.activeElement === document.body) main.focus({ preventScroll: true });
}

// A link names no token, and a new tab has none.
function askForToken() {
  const field = element("input", { type: "password", name: "token", required: true, autocomplete: "off" });
  const form = element(
    "form",
    { class: "card", onsubmit: given },
    labelled("Token", field, "It is in the address that the server printed, behind #token=.", { class: "wide" }),
    element("p", { class: "buttons" }, element("button", {}, "Open")),
  );
  main.replaceChildren(element("h1", {}, "This server asks for a token"), form);
  if (hasToken()) say("The token is another one.", true);
  field.focus();

  function given(event) {
    event.preventDefault();
    keepToken(field.value.trim());
    show();
  }
}

addEventListener("hashchange", show);
show();
