// Long work on the server: its progress, a button that cancels it, and its result.

import { cancel, get } from "./api.js";
import { button, element, trying } from "./dom.js";

const PAUSE = 400; // milliseconds between two looks

// Shows a job in `box` until it ends, and returns its result.
export async function followed(id, box, signal) {
  const bar = element("progress", { max: 1, "aria-label": "Progress" });
  const says = element("p", { class: "soft", role: "status" }, "Waiting for its turn\u2026");
  const stop = button("Cancel", () => trying(() => cancel(`jobs/${id}`)), { class: "quiet" });
  box.replaceChildren(element("div", { class: "card job" }, says, bar, stop));
  for (;;) {
    const job = await looked(id, signal);
    if (job.state === "done") break;
    if (job.state === "failed") throw ended(box, job.error ?? "The work failed: its server's log says why.");
    if (job.state === "cancelled") throw ended(box, "Cancelled. Start it again when you want.");
    if (job.done < job.total) bar.value = job.done / job.total;
    else bar.removeAttribute("value");
    says.textContent = told(job);
    await paused(signal);
  }
  says.textContent = "Reading the result\u2026";
  const result = await get(`jobs/${id}/result`, {}, signal);
  box.replaceChildren();
  return result;
}

async function looked(id, signal) {
  try {
    return await get(`jobs/${id}`, {}, signal);
  } catch (error) {
    if (error.status !== 404) throw error;
    throw new Error("The server does not keep this run any more: start it again.");
  }
}

function ended(box, sentence) {
  box.replaceChildren();
  return new Error(sentence);
}

function told({ state, stage, done, total, seconds }) {
  if (state === "waiting") return "Waiting for its turn\u2026";
  const of = total > 0 ? ` of ${total.toLocaleString("en")}` : "";
  const left =
    total > 0 && done > 0 && done < total && seconds > 1
      ? `, about ${duration((seconds * (total - done)) / done)} left`
      : "";
  const title = stage === "" ? "Working" : stage[0].toUpperCase() + stage.slice(1);
  if (done === 0 && total === 0) return `${title}\u2026`;
  const rest = total > 0 && done >= total ? "; working out the rest\u2026" : "";
  return `${title}: ${done.toLocaleString("en")}${of}${left}${rest}`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function paused(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, PAUSE);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(new DOMException("left", "AbortError"));
      },
      { once: true },
    );
  });
}
