/** The stage: the job that is looked at, as it is drawn and when it is done. */

import { Cell, framed } from "./cell.js";
import { $, button, el, icon } from "./dom.js";
import { duration, language, t } from "./i18n.js";
import { isFinished, jobs, pictureKey, previews, timeLeft, watched } from "./jobs.js";
import { image } from "./picture.js";
import { change } from "./settings.js";

/**
 * What is shown: a job, all its pictures or one; `auto` if the page chose it, not the user.
 * @type {Cell<{id: string, index: number | null, auto: boolean} | null>}
 */
export const shown = new Cell(/** @type {any} */ (null));

/**
 * @param {string} id
 * @param {number | null} [index]
 * @param {boolean} [auto]
 */
export function show(id, index = null, auto = false) {
  shown.value = { id, index, auto };
  watched.value = id;
}

/** The job on the stage and the picture of it: [job, index], or null. */
export function current() {
  const job = shown.value && jobs.value.get(shown.value.id);
  return job ? { job, index: shown.value?.index ?? 0 } : null;
}

let structure = "";

/** @param {(job: any, index: number) => Node[]} tools the buttons of a finished picture */
export function startStage(tools) {
  const draw = framed(() => {
    const job = shown.value && jobs.value.get(shown.value.id);
    const next = job
      ? JSON.stringify([job.id, shown.value?.index, job.status, job.images.map((/** @type {any} */ one) => !!one.url), job.notes, language.value])
      : `empty ${language.value}`;
    if (next !== structure) {
      structure = next;
      $("view").replaceChildren(...(job ? whole(job, tools) : [empty()]));
    }
    if (job && !isFinished(job)) update(job);
  });
  jobs.watch(draw);
  shown.watch(draw);
  language.watch(draw);
  setInterval(() => {
    const job = shown.value && jobs.value.get(shown.value.id);
    if (job && !isFinished(job)) update(job);
  }, 500);
}

function empty() {
  const examples = ["example_1", "example_2", "example_3", "example_4"].map((key) =>
    el("button", { type: "button", class: "example", onclick: () => (change({ prompt: t(key) }), $("prompt").focus()) }, t(key)),
  );
  return el(
    "div",
    { class: "empty" },
    el("img", { src: "/page/icon.svg", alt: "", width: "72", height: "72" }),
    el("p", { class: "empty-title" }, t("empty_title")),
    el("p", { class: "hint" }, t("empty_hint")),
    el("div", { class: "examples" }, ...examples),
  );
}

/**
 * @param {any} job
 * @param {(job: any, index: number) => Node[]} tools
 */
function whole(job, tools) {
  const one = job.images.length === 1 ? 0 : (shown.value?.index ?? null);
  const picked = one === null ? job.images : [job.images[one]];
  const figures = el(
    "div",
    { class: picked.length > 1 ? "tiles" : "tiles single", "data-count": picked.length },
    ...picked.map((/** @type {any} */ picture) => figure(job, picture, picked.length > 1)),
  );
  if (one !== null && job.images.length > 1) {
    figures.firstElementChild.append(button({
      icon: "back", text: t("back_to_all", { n: job.images.length }), class: "quiet back", onclick: () => show(job.id),
    }));
  }
  figures.style.setProperty("--ratio", String(job.images[0].width / job.images[0].height));
  figures.style.setProperty("--native", String(Math.max(job.images[0].width, job.images[0].height)));
  const done = one !== null && job.images[one].url;
  return [
    figures,
    isFinished(job) ? null : progress(),
    job.status === "failed" && el("p", { class: "problem" }, job.error?.message ?? t("failed")),
    job.status === "cancelled" && el("p", { class: "ending" }, t("cancelled")),
    done && el("div", { class: "tools", role: "toolbar", "aria-label": t("stage") },
      ...tools(job, one)),
    facts(job, one),
  ].filter(Boolean);
}

/**
 * @param {any} job
 * @param {any} picture
 * @param {boolean} many
 */
function figure(job, picture, many) {
  const made = el("figure", { class: "tile", "data-index": picture.index });
  made.style.aspectRatio = `${picture.width} / ${picture.height}`;
  if (picture.url) {
    const last = previews.get(pictureKey(job, picture.index));
    if (last) made.append(el("img", { class: "preview", alt: "", src: last }));
    const shown_image = image(job, picture.index);
    if (!many) made.append(shown_image);
    else {
      made.append(
        el("button", {
          type: "button", class: "pick", "aria-label": `${t("open")}: ${t("seed")} ${picture.seed}`,
          onclick: () => show(job.id, picture.index),
        }, shown_image),
      );
    }
  } else if (!isFinished(job)) {
    made.append(el("img", { class: "preview", alt: "", hidden: true }), el("div", { class: "wait" }));
  } else made.append(el("div", { class: "gone" }, icon("image")));
  return made;
}

function progress() {
  return el(
    "div",
    { class: "progress" },
    el("div", {
      class: "bar", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100",
      "aria-label": t("stage"),
    }, el("div", { class: "done" })),
    el("p", { class: "status" }, el("span", { class: "step" }), el("span", { class: "left" })),
  );
}

/** What changes while a job is drawn; nothing is made anew. @param {any} job */
function update(job) {
  const view = $("view");
  const bar = view.querySelector(".bar");
  if (!bar) return;
  bar.setAttribute("aria-valuenow", String(Math.round(100 * job.progress)));
  bar.querySelector(".done").style.transform = `scaleX(${job.progress})`;
  view.querySelector(".step").textContent = stepLine(job);
  const left = timeLeft(job);
  view.querySelector(".left").textContent = left === null ? "" : t("time_left", { time: duration(left) });
  for (const tile of view.querySelectorAll(".tile")) {
    const url = previews.get(pictureKey(job, Number(tile.dataset.index)));
    const preview = tile.querySelector(".preview");
    if (!url || !preview || preview.src === url) continue;
    preview.src = url;
    preview.hidden = false;
    tile.classList.add("seen");
  }
}

/** @param {any} job */
export function stepLine(job) {
  if (job.status === "queued") {
    return job.queue_position ? t("position", { n: job.queue_position }) : t("queued");
  }
  const working = job.images.find((/** @type {any} */ one) => one.step < one.steps) ?? job.images.at(-1);
  if (!working.step) return t("preparing");
  return t("of_steps", { step: working.step, steps: working.steps });
}

/**
 * @param {any} job
 * @param {number | null} index
 */
function facts(job, index) {
  const { request } = job;
  const seeds = index === null ? `${job.images[0].seed} – ${job.images.at(-1).seed}` : job.images[index].seed;
  const took = job.finished_at && job.started_at ? duration(job.finished_at - job.started_at) : null;
  const chips = [
    [t("seed"), job.images.length > 1 && index === null ? seeds : String(seeds)],
    [t("size"), `${job.images[0].width} × ${job.images[0].height}`],
    [t("steps"), request.steps],
    [t("guidance"), request.guidance],
    [t("solver"), request.solver],
    job.inputs.image && [t("strength"), request.strength],
    ...(job.lora ?? []).map((/** @type {any} */ one) => [one.name, one.scale]),
    job.status === "completed" && took && ["", took],
  ].filter(Boolean);
  return el(
    "div",
    { class: "facts" },
    el("p", { class: "said" }, request.prompt),
    request.negative_prompt && el("p", { class: "said avoided" }, `− ${request.negative_prompt}`),
    el("ul", { class: "chips" }, ...chips.map(([name, value]) =>
      el("li", {}, name ? el("span", {}, name) : null, " ", el("b", {}, String(value))))),
    job.notes.length > 0 && el("ul", { class: "notes" }, ...job.notes.map((/** @type {string} */ note) => el("li", {}, note))),
  );
}
