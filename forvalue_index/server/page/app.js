// Which view is shown: the part of the address after # says it, so that each has a link.

import { get, takeToken } from "./api.js";
import { element, say } from "./dom.js";
import { showAbout } from "./about.js";
import { showAsk } from "./ask.js";
import { showRow, showRows } from "./rows.js";

const VIEWS = { ask: showAsk, rows: showRows, row: showRow, about: showAbout };
const main = document.getElementById("main");
let info = null;
let leaving = new AbortController();

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const signal = leaving.signal;
  const [name, query] = location.hash.replace(/^#\/?/, "").split("?");
  const view = VIEWS[name] ? name : "ask";
  for (const link of document.querySelectorAll("nav a")) {
    const own = link.getAttribute("href") === `#/${view === "row" ? "rows" : view}`;
    if (own) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  say("");
  main.replaceChildren();
  try {
    info ??= await get("info");
    const n = info.samples.toLocaleString("en");
    document.getElementById("what").textContent = `${n} training rows of ${info.model}`;
    await VIEWS[view](main, info, new URLSearchParams(query), signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (main.childElementCount === 0) {
      main.append(element("p", { class: "empty" }, "There is nothing to show."));
    }
    say(error.message, true);
  }
  if (document.activeElement === document.body) main.focus({ preventScroll: true });
}

takeToken();
addEventListener("hashchange", show);
show();
