// What the index holds, and what a score says.

import { element, visible } from "./dom.js";
import { METRICS } from "./metrics.js";

const SAYS = [
  "A score is the influence of a training row on an answer: what one step of training on this row does to the log-likelihood of the answer, from the gradients of the model's last layer.",
  "A positive score: the row made the answer more likely. A negative one: less likely.",
  "The colours say through which tokens of the row this happened. Together they are the influence.",
];
const SAYS_NOT = [
  "It does not say that the model would answer otherwise without the row: other rows may teach the same.",
  "It does not say that the answer is right, or that the row is.",
  "It knows the rows of this index only, and nothing of what the model had read before.",
  "Scores of different answers cannot be compared: they depend on the answer's length and on how unsure the model is.",
];

export function showAbout(main, info) {
  const { fidelity, config } = info;
  const facts = {
    "training rows": info.samples.toLocaleString("en"),
    "removed, not yet compacted": info.removed.toLocaleString("en"),
    model: info.model,
    recipe: config.vector.recipe,
    vector: `${info.dim.toLocaleString("en")} numbers of ${info.bits} bits`,
    "on disk": `${(info.bytes / 1e6).toFixed(1)} MB`,
    fields: info.fields.join(", "),
    fingerprint: info.fingerprint,
  };
  const kept = fidelity
    ? `Stored vectors are short, so that a search is fast. They find ${percent(fidelity.top_10)} ` +
      `(\u00b1${percent(fidelity.error)}) of the ten rows that the exact form puts first, measured with ` +
      `${fidelity.queries} queries against ${fidelity.rows} rows that nothing was fitted to. ` +
      "\u201cExact\u201d scores in Ask run the best candidates again."
    : "How true the stored vectors are was not measured: the index is too small, or was made before this was done.";
  main.replaceChildren(
    element("h2", {}, "About this index"),
    element(
      "dl",
      { class: "facts" },
      Object.entries(facts).map(([name, value]) => [
        element("dt", {}, name),
        element("dd", {}, visible(String(value))),
      ]),
    ),
    element("h3", {}, "How true the stored vectors are"),
    element("p", {}, kept),
    element("h3", {}, "What a score says"),
    list(SAYS),
    element("h3", {}, "What it does not say"),
    list(SAYS_NOT),
    element("h3", {}, "Metrics"),
    element(
      "dl",
      { class: "facts" },
      Object.values(METRICS).map(({ title, says }) => [
        element("dt", {}, title),
        element("dd", {}, says),
      ]),
    ),
    element("p", {}, "For programs: ", element("a", { href: "api/openapi.json" }, "the API"), "."),
  );
}

function list(items) {
  return element("ul", {}, items.map((item) => element("li", {}, item)));
}

function percent(share) {
  return `${(100 * share).toFixed(0)} %`;
}
