// What every training row is worth for a set of targets, by source and one by one.

import { post } from "./api.js";
import { choice, count, element, labelled, numberField, say, signed, trying, visible } from "./dom.js";
import { filters } from "./filters.js";
import { followed } from "./jobs.js";
import { link, remember } from "./links.js";
import { METRICS } from "./metric.js";
import { groupPlot } from "./plot.js";
import { rowField } from "./rowfield.js";
import { chips, fieldsOf, saidBy } from "./said.js";
import { downloadButtons } from "./save.js";

const LISTED = 10; // best and worst rows

export async function showValue(main, info, parameters, signal) {
  const targets = rowField("Targets", "targets", info, "What the model should do well: rows with the responses that it should give.");
  const filter = filters(info, parameters.getAll("where"), () => {}, signal);
  const linear = Object.entries(METRICS).filter(([, { linear }]) => linear);
  const form = element(
    "form",
    { class: "card", onsubmit: submitted },
    targets.box,
    element(
      "div",
      { class: "line wide" },
      labelled("Compare rows by", choice("group_by", [["", "nothing"], ...info.fields.map((name) => [name, visible(name)])], parameters.get("group") ?? guessed(info))),
      labelled("Metric", choice("metric", linear.map(([name, { title }]) => [name, title]), "dot")),
      labelled("Over the targets", choice("combine", [["mean", "mean"], ["max", "highest"]], "mean")),
      numberField("k", "Best and worst rows", LISTED, 1, 200),
    ),
    filter.box,
    element("p", { class: "buttons" }, element("button", {}, "Value the rows")),
  );
  const box = element("div", {});
  const empty = element("p", { class: "empty" }, "Give targets, and every training row gets a value: how much it helped the model to do well on them. The sum over a source is what the source did.");
  main.replaceChildren(element("h1", {}, "Value"), form, box);

  async function submitted(event) {
    event.preventDefault();
    await trying(async () => {
      const given = new FormData(form);
      const rows = targets.rows();
      if (rows.length === 0) throw new Error("Give at least one target: paste rows, or choose a file.");
      const group = given.get("group_by");
      const request = {
        targets: rows,
        k: Number(given.get("k")),
        combine: given.get("combine"),
        metric: given.get("metric"),
        where: filter.where(),
      };
      if (group !== "") request.group_by = group;
      say("");
      const { id } = await post("score", request, signal);
      remember("value", { job: id, group, where: filter.where() });
      await follow(id, group);
    });
  }

  async function follow(id, group) {
    const result = await followed(id, box, signal);
    box.replaceChildren(...shown(id, result, group));
  }

  function shown(id, result, group) {
    const share = `${(100 * result.helpful).toFixed(0)} %`;
    const combined = result.combine === "mean" ? "Mean" : "Highest value";
    const summary = `${combined} over ${count(result.targets, "target")}: ${count(result.samples, "training row")}, on average ${signed(result.mean)}; ${share} helped.`;
    const parts = [
      element(
        "div",
        { class: "toolbar spaced" },
        element("p", {}, summary),
        element("span", { class: "right" }, downloadButtons("values", `jobs/${id}/rows`, () => ({}), signal)),
      ),
    ];
    if (result.groups.length > 0) parts.push(element("h2", {}, "By ", visible(group || "group")), groupPlot(result.groups), groupTable(result.groups, group));
    const columns = [
      ["Best: helped most", result.best],
      [result.worst[0]?.value > 0 ? "Worst: helped least" : "Worst: hurt most", result.worst],
    ];
    parts.push(element("div", { class: "hits" }, columns.map(([title, rows]) => element("section", {}, element("h2", {}, title), list(rows)))));
    return parts;
  }

  function list(rows) {
    const format = info.config.format;
    const most = rows.reduce((most, row) => Math.max(most, Math.abs(row.value)), 1e-300);
    return element("ol", {}, rows.map((row) => item(row, most, format)));
  }

  const job = parameters.get("job");
  if (job === null) box.append(empty);
  else await follow(job, parameters.get("group") ?? "");
}

function item(row, most, format) {
  const side = row.value >= 0 ? "help" : "hurt";
  const bar = element("span", { class: `bar ${side}` });
  bar.style.setProperty("--share", (Math.abs(row.value) / most).toFixed(3));
  return element(
    "li",
    { class: "card hit" },
    element(
      "p",
      { class: "head" },
      element("strong", { class: side }, signed(row.value)),
      element("span", { class: "track", "aria-hidden": "true" }, bar),
      element("a", { href: link("row", { key: row.key }), class: "key" }, visible(row.key)),
    ),
    saidBy(row.sample, format, 280),
    element("p", { class: "foot" }, chips(fieldsOf(row.sample, format))),
  );
}

function groupTable(groups, name) {
  const heads = [name, "rows", "mean", "\u00b1", "sum", "helped"];
  const rows = groups.map((group) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, visible(group.name)),
      element("td", {}, group.samples.toLocaleString("en")),
      element("td", { class: group.mean >= 0 ? "help" : "hurt" }, signed(group.mean)),
      element("td", {}, group.se === null ? "\u2013" : group.se.toPrecision(2)),
      element("td", {}, signed(group.sum)),
      element("td", {}, `${(100 * group.helpful).toFixed(0)} %`),
    ),
  );
  return element(
    "div",
    { class: "scroll", tabindex: 0, role: "group", "aria-label": "Table of groups" },
    element(
      "table",
      { class: "figures" },
      element("thead", {}, element("tr", {}, heads.map((text) => element("th", { scope: "col" }, visible(text))))),
      element("tbody", {}, rows),
    ),
  );
}

// A field that is likely a source.
function guessed(info) {
  return info.fields.find((name) => /^(source|dataset|origin|category|topic|task|type|field)$/i.test(name)) ?? "";
}
