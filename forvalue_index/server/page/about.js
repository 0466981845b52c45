// What the index holds, and what a score says.

import { blob } from "./api.js";
import { button, element, facts, fill, trying, visible } from "./dom.js";
import { METRICS } from "./metric.js";
import { keep, saveButtons } from "./save.js";

const SAYS = [
  "A score is the influence of a training row on an answer: what one step of training on this row does to the log-likelihood of the answer, from the gradients of the model\u2019s last layer.",
  "A positive score: the row made the answer more likely. A negative one: less likely.",
  "The colours say through which tokens of the row this happened. Together they are the influence.",
];
const SAYS_NOT = [
  "It does not say that the model would answer otherwise without the row: other rows may teach the same.",
  "It does not say that the answer is right, or that the row is.",
  "It knows the rows of this index only, and nothing of what the model had read before.",
  "Scores of different answers cannot be compared: they depend on the answer\u2019s length and on how unsure the model is.",
];

export function showAbout(main, info) {
  const { fidelity, config } = info;
  const known = {
    "training rows": info.samples.toLocaleString("en"),
    "removed, not yet compacted": info.removed.toLocaleString("en"),
    model: info.model,
    recipe: config.vector.recipe,
    vector: `${info.dim.toLocaleString("en")} numbers of ${info.bits} bits`,
    "on disk": `${(info.bytes / 1e6).toFixed(1)} MB`,
    fields: info.fields.join(", "),
    fingerprint: info.fingerprint,
    "may be changed here": info.writable ? "yes: the server was started with --allow-write" : "no",
  };
  const kept = fidelity
    ? `Stored vectors are short, so that a search is fast. They find ${percent(fidelity.top_10)} ` +
      `(\u00b1${percent(fidelity.error)}) of the ten rows that the exact form puts first, measured with ` +
      `${fidelity.queries} queries against ${fidelity.rows} rows that nothing was fitted to. ` +
      "\u201cExact\u201d scores in Ask run the best candidates again."
    : "How true the stored vectors are was not measured: the index is too small, or was made before this was done.";
  const table = () => Object.entries(known).map(([name, value]) => ({ name, value }));
  fill(
    main,
    element(
      "div",
      { class: "toolbar" },
      element("h1", {}, "About this index"),
      element("span", { class: "right" }, saveButtons("index", () => info, table)),
    ),
    element("div", { class: "card" }, facts(Object.entries(known).map(([name, value]) => [name, String(value)]))),
    element("h2", {}, "How true the stored vectors are"),
    fidelity ? meter(fidelity.top_10) : null,
    element("p", {}, kept),
    element("h2", {}, "What a score says"),
    list(SAYS),
    element("h2", {}, "What it does not say"),
    list(SAYS_NOT),
    element("h2", {}, "Metrics"),
    facts(Object.values(METRICS).map(({ title, says }) => [title, says])),
    element("p", {}, "For programs: ", button("the API as OpenAPI", () => trying(saveApi), { class: "link" }), "."),
  );
}

// A link would not bring the token along.
async function saveApi() {
  keep("openapi.json", await blob("openapi.json"));
}

function list(items) {
  return element("ul", {}, items.map((item) => element("li", {}, visible(item))));
}

function meter(share) {
  const bar = element("span", { class: "bar help" });
  bar.style.setProperty("--share", share.toFixed(3));
  return element("span", { class: "track wide-track", "aria-hidden": "true" }, bar);
}

function percent(share) {
  return `${(100 * share).toFixed(0)} %`;
}
