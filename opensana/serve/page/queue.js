/** The queue: one's own jobs that are not done, beside the one on the stage. */

import { framed } from "./cell.js";
import { $, button, el } from "./dom.js";
import { duration, language, t } from "./i18n.js";
import { cancel, jobs, timeLeft, unfinished } from "./jobs.js";
import { show, shown, stepLine } from "./stage.js";

const MOST_SHOWN = 20;

/** @param {(error: unknown) => void} refused */
export function startQueue(refused) {
  const draw = framed(() => {
    const waiting = unfinished().filter((job) => job.id !== shown.value?.id);
    $("queue").hidden = waiting.length === 0;
    $("queue-title").textContent = t("queue_title", { n: waiting.length });
    const known = new Map([...$("queue-list").children].map((line) => [line.dataset.id, line]));
    const lines = waiting.slice(0, MOST_SHOWN).map((job) => {
      const line = known.get(`${job.id} ${language.value}`) ?? row(job, refused);
      const left = timeLeft(job);
      line.querySelector(".where").textContent = [
        stepLine(job), left === null ? null : t("time_left", { time: duration(left) }),
      ].filter(Boolean).join(" · ");
      line.querySelector(".done").style.transform = `scaleX(${job.progress})`;
      return line;
    });
    if (lines.some((line, index) => $("queue-list").children[index] !== line) || lines.length !== known.size) {
      $("queue-list").replaceChildren(...lines);
    }
  });
  jobs.watch(draw);
  shown.watch(draw);
  language.watch(draw);
}

/**
 * @param {any} job
 * @param {(error: unknown) => void} refused
 */
function row(job, refused) {
  return el(
    "li",
    { class: "waiting", "data-id": `${job.id} ${language.value}` },
    el("button", { type: "button", class: "pick", onclick: () => show(job.id) },
      el("span", { class: "what" }, job.request.prompt),
      el("span", { class: "where" }),
      el("span", { class: "bar" }, el("span", { class: "done" }))),
    button({ icon: "close", label: t("cancel"), onclick: () => cancel(job.id).catch(refused) }),
  );
}
