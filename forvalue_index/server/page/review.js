// Rows that are likely wrong, worked through one after the other.

import { get, post } from "./api.js";
import { button, choice, count, element, labelled, numberField, say, trying, visible } from "./dom.js";
import { openDecisions } from "./decisions.js";
import { filters } from "./filters.js";
import { followed } from "./jobs.js";
import { remember } from "./links.js";
import { partsOf } from "./said.js";
import { downloadButtons } from "./save.js";
import { rowField } from "./rowfield.js";
import { suspect } from "./suspect.js";

const KEYS = { k: "keep", d: "drop", f: "fix" };

export async function showReview(main, info, parameters, signal) {
  const decisions = await openDecisions(info, signal);
  const filter = filters(info, parameters.getAll("where"), () => {}, signal);
  const trusted = rowField("Rows that are known to be right", "trusted", info, "Not needed; 30 or more make the estimate more exact.");
  const form = element(
    "form",
    { class: "card", onsubmit: submitted },
    element(
      "div",
      { class: "line wide" },
      labelled("Compare rows within", choice("class_field", [["", "all rows"], ...info.fields.map((name) => [name, visible(name)])], "")),
      numberField("top", "Suspects at most", 100, 1, 10_000),
    ),
    element("details", { class: "wide" }, element("summary", {}, "Trusted rows"), trusted.box),
    filter.box,
    element("p", { class: "buttons" }, element("button", {}, "Look for suspects")),
  );
  const box = element("div", {});
  const start = element("details", { open: !parameters.has("job") }, element("summary", {}, "New audit"), form);
  const empty = element("p", { class: "empty" }, "An audit runs every row through the model and lists those that are likely wrong or repeated, each with the reasons. You then keep, drop or fix them, one key for each.");
  main.replaceChildren(element("h1", {}, "Review"), start, box);

  async function submitted(event) {
    event.preventDefault();
    await trying(async () => {
      const given = new FormData(form);
      const known = trusted.rows();
      const request = { top: Number(given.get("top")), where: filter.where() };
      if (given.get("class_field") !== "") request.class_field = given.get("class_field");
      if (known.length > 0) request.trusted = known;
      say("");
      const { id } = await post("audit", request, signal);
      remember("review", { job: id, where: filter.where() });
      start.open = false;
      await follow(id, null);
    });
  }

  async function follow(id, at) {
    const result = await followed(id, box, signal);
    if (result.rows.length === 0) {
      box.replaceChildren(element("p", { class: "empty" }, `${verdict(result)} No row is suspicious.`));
      return;
    }
    box.replaceChildren(workbench(id, result, at));
    box.querySelector(".bench").focus({ preventScroll: true });
  }

  function workbench(id, result, at) {
    const { rows } = result;
    let current = Math.max(0, rows.findIndex(({ key }) => key === at));
    const counts = element("span", { class: "soft", role: "status" });
    const list = element("ol", { class: "suspects", "aria-label": "Suspects" });
    const items = rows.map((row, i) => {
      const mark = element("span", { class: "mark" });
      const item = element(
        "button",
        { type: "button", class: "suspect", onclick: () => open(i) },
        element("span", { class: "figure" }, row.suspicion.toFixed(2)),
        element("span", { class: "words" }, visible(wordsOf(row, info.config.format))),
        mark,
      );
      list.append(element("li", {}, item));
      return { item, mark };
    });
    const detail = element("div", { class: "detail" });
    const files = ["drop.txt", "fix.jsonl"].map((name) =>
      button(name, () => trying(() => decisions.download(name)), { class: "quiet small" }),
    );
    const place = decisions.isOnServer
      ? "Decisions are kept with the index, in its folder review/."
      : "The server only reads: decisions stay in this browser until you save the files. Start it with --allow-write to keep them with the index.";

    // One after the other: a key that is pressed while a decision is kept is about the next row.
    let last = Promise.resolve();
    const inTurn = (work) => (last = last.then(() => trying(work)));

    async function decide(decision) {
      if (decision === "fix") return view.fix();
      const { key } = rows[current];
      return kept(current, decisions.of(key)?.decision === decision ? null : decision);
    }

    async function kept(place, decision, row = null) {
      await decisions.set(rows[place].key, decision, row);
      draw();
      if (current === place) next();
    }

    function next() {
      const later = [...rows.keys()].slice(current + 1).find((i) => !decisions.of(rows[i].key));
      if (later !== undefined) open(later);
      else if (rows.every(({ key }) => decisions.of(key))) say("All suspects are decided. Save the files below the list.");
    }

    async function undo() {
      const key = await decisions.undo();
      if (key === null) return say("There is nothing to undo.");
      const place = rows.findIndex((row) => row.key === key);
      if (place >= 0) open(place);
      return draw();
    }

    let view = null;
    function open(place) {
      current = place;
      remember("review", { job: id, at: rows[place].key, where: filter.where() });
      view = suspect(rows[place], {
        info,
        signal,
        decide: (decision) => inTurn(() => decide(decision)),
        fixed: (row) => {
          bench.focus({ preventScroll: true });
          inTurn(() => kept(place, "fix", row));
        },
        undo: () => inTurn(undo),
        place: `${place + 1} of ${rows.length.toLocaleString("en")}`,
      });
      detail.replaceChildren(view.box);
      draw();
      items[place].item.scrollIntoView({ block: "nearest" });
    }

    function draw() {
      items.forEach(({ item, mark }, i) => {
        const decision = decisions.of(rows[i].key)?.decision ?? "";
        mark.textContent = decision;
        mark.className = `mark ${decision}`;
        if (i === current) item.setAttribute("aria-current", "true");
        else item.removeAttribute("aria-current");
      });
      view?.show(decisions.of(rows[current].key));
      const n = decisions.counts();
      counts.textContent = `Decided in all: ${n.keep} keep, ${n.drop} drop, ${n.fix} fix.`;
    }

    const bench = element(
      "div",
      { class: "bench", tabindex: -1, role: "group", "aria-label": "Suspects, and decisions about them", onkeydown: onKey },
      element(
        "div",
        { class: "listed" },
        list,
        element("p", {}, counts),
        element("p", { class: "line" }, "Save: ", files),
        element("p", { class: "soft" }, place, " ", element("code", {}, "forvalue remove --keys-file drop.txt"), ", ", element("code", {}, "forvalue add --update fix.jsonl")),
      ),
      detail,
    );

    function onKey(event) {
      if (event.target.matches("textarea, input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (event.repeat && !step) return; // a key that is held decides once
      const key = event.key.toLowerCase();
      if (step) {
        if (rows[current + step]) open(current + step);
      } else if (KEYS[key]) inTurn(() => decide(KEYS[key]));
      else if (key === "u") inTurn(undo);
      else if (key === "n") view.neighbours();
      else return;
      event.preventDefault();
    }

    open(current);
    return element(
      "div",
      {},
      element(
        "div",
        { class: "toolbar" },
        element("p", {}, `${verdict(result)} ${count(rows.length, "row")} of ${result.samples.toLocaleString("en")} to look at.`),
        element("span", { class: "right" }, downloadButtons("suspects", `jobs/${id}/rows`, () => ({}), signal)),
      ),
      bench,
    );
  }

  const job = parameters.get("job") ?? (await latest());
  if (job === null) box.append(empty);
  else {
    start.open = false;
    await follow(job, parameters.get("at"));
  }

  // The audit that ran last, if the server still has it.
  async function latest() {
    const { jobs } = await get("jobs", {}, signal);
    return jobs.find(({ kind, state }) => kind === "audit" && /running|waiting|done/.test(state))?.id ?? null;
  }
}

function verdict({ verdict: said }) {
  return `${visible(said.replace(" (--trusted)", ""))}.`;
}

// A few words of a row, to know it by in a list.
function wordsOf(row, format) {
  const parts = partsOf(row.sample, format).map(([, text]) => text.slice(0, 60).trim());
  return parts.slice(-2).join(" \u2192 ");
}
