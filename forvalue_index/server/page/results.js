// Beside an answer: by which metric, and of which rows, the hits are; and the hits.

import { post } from "./api.js";
import { choice, element, labelled, say } from "./dom.js";
import { filters } from "./filters.js";
import { hitGroups, hitRows } from "./hits.js";
import { METRICS } from "./metric.js";
import { saveButtons } from "./save.js";

const COUNTS = [10, 20, 50, 100, 200, 1000];
const COLOURED = 50; // rows of each kind whose tokens are coloured; each is run forward again
const EXACT = 20; // rows of each kind that may be scored exactly

// `changed` is called when other hits are wanted.
export function results(info, parameters, changed, signal) {
  const sentence = element("p", { class: "soft says", id: "metric-says" });
  const metric = choice(
    "metric",
    Object.entries(METRICS).map(([name, { title }]) => [name, title]),
    parameters.get("metric") ?? "dot",
    { "aria-describedby": "metric-says", onchange: chosen },
  );
  const given = parameters.get("k") ?? "10";
  const k = choice("k", COUNTS.map((n) => [String(n), String(n)]), given, { onchange: chosen });
  const exact = element("input", {
    type: "checkbox",
    name: "exact",
    checked: parameters.get("exact") === "1",
    onchange: chosen,
  });
  const filter = filters(info, parameters.getAll("where"), changed, signal);
  const list = element("div", { "aria-live": "off" });
  const save = element("span", { class: "right" });
  const box = element(
    "section",
    { class: "results", "aria-labelledby": "results-title" },
    element("h2", { class: "hidden", id: "results-title" }, "Training rows behind the answer"),
    element(
      "div",
      { class: "toolbar" },
      labelled("Metric", metric),
      labelled("Rows of each kind", k),
      element("label", { class: "check" }, exact, "Exact scores"),
      save,
    ),
    sentence,
    filter.box,
    list,
  );

  function chosen() {
    explain();
    changed();
  }

  function explain() {
    const { says, linear } = METRICS[metric.value];
    exact.disabled = !linear || metric.value === "decorrelated" || Number(k.value) > EXACT;
    const runs = exact.checked && !exact.disabled ? " The best candidates are run again." : "";
    sentence.textContent = says + runs;
  }

  // What the address says of the choice.
  function choices() {
    const isExact = exact.checked && !exact.disabled;
    return {
      metric: metric.value === "dot" ? "" : metric.value,
      k: k.value === "10" ? "" : k.value,
      exact: isExact ? "1" : "",
      where: filter.where(),
    };
  }

  // Shows the hits of a query; `target` is the text that is asked about.
  async function find(query, target, isContrast, own) {
    say("Looking for the rows behind it\u2026");
    const n = Number(k.value);
    const request = {
      ...query,
      k: n,
      metric: metric.value,
      where: filter.where(),
      highlight: n <= COLOURED && !info.config.format.label_field,
    };
    if (exact.checked && !exact.disabled) request.exact = true;
    const { linear } = METRICS[metric.value];
    const sides = linear ? [false, true] : [false];
    const asked = sides.map((opponents) => post("query", { ...request, opponents }, own));
    const [helped, hurt] = (await Promise.all(asked)).map(({ hits }) => hits);
    const none =
      filter.where().length > 0
        ? "No such row meets the conditions: remove one under \u201cFilter\u201d."
        : "There is no such row.";
    const groups = linear
      ? [
          [isContrast ? "Towards this answer" : "Helped: made it more likely", helped.filter(({ score }) => score > 0), none],
          [isContrast ? "Towards the other" : "Hurt: made it less likely", hurt.filter(({ score }) => score < 0), none],
        ]
      : [["Found, the best first", helped, none]];
    const context = { info, query: linear || metric.value === "hybrid" ? query : null, target, signal };
    list.replaceChildren(hitGroups(groups, context));
    const { images, ...named } = query;
    save.replaceChildren(
      saveButtons(
        "hits",
        () => ({ query: named, metric: metric.value, where: request.where, groups: groups.map(([title, hits]) => ({ title, hits })) }),
        () => hitRows(groups),
      ),
    );
    say("");
  }

  explain();
  return { box, find, choices, show: (...children) => list.replaceChildren(...children), clear: () => save.replaceChildren() };
}
