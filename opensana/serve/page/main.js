/** The page: its parts in the order they begin, and what a drawing is. */

import * as api from "./api.js";
import { startCompare, compare } from "./compare.js";
import { showCopies, startCopy } from "./copy.js";
import { $, button } from "./dom.js";
import { startDrop } from "./drop.js";
import { mark, startForm } from "./form.js";
import { resumeGrid, startGrid } from "./grid.js";
import { discard, startHistory } from "./history.js";
import { language, switchLanguage, t, translate } from "./i18n.js";
import * as queue from "./jobs.js";
import { startLoras } from "./loras.js";
import { announce, problem } from "./notices.js";
import { download, png, requestOfPicture, restore, settingsOfPicture } from "./picture.js";
import { startPicturesIn, takePicture } from "./pictures_in.js";
import { startQueue } from "./queue.js";
import { isSeed } from "./recorded.js";
import { change, files, fillIn, loadInputs, present, requestOf, settings } from "./settings.js";
import { startShapes } from "./shapes.js";
import { current, show, shown, startStage } from "./stage.js";

const VARIATIONS = 4;
const LARGEST_SEED = 2n ** 63n - 1n;
const PHONE = matchMedia("(max-width: 56rem)");
const MAC = /mac|iphone|ipad/i.test(navigator.userAgent);

/** One line where the drawing is begun. @param {unknown} error */
function refused(error) {
  if (!(error instanceof api.ApiError)) throw error;
  problem($("problem"), error.line);
  mark(error.param);
}

/** Drawings that wait for room in the queue. @type {Set<{on: boolean}>} */
const waiting = new Set();

/**
 * Send the form, or other settings with the pictures of another drawing.
 * @param {Record<string, any>} request
 * @param {Record<string, Blob>} blobs
 */
async function draw(request, blobs) {
  problem($("problem"), null);
  mark(null);
  const turn = { on: true };
  try {
    const job = await queue.submit(request, blobs, (s) => {
      waiting.add(turn);
      problem($("problem"), turn.on && s ? t("queue_waits", { s }) : null);
      queue.jobs.touch();
      return turn.on;
    });
    if (!job) return null;
    const looking = shown.value && queue.jobs.value.get(shown.value.id);
    if (!looking || queue.isFinished(looking)) show(job.id, null, true);
    if (PHONE.matches) $("stage").scrollIntoView({ block: "start" });
    return job;
  } catch (error) {
    refused(error);
    return null;
  } finally {
    waiting.delete(turn);
    queue.jobs.touch();
  }
}

async function drawForm() {
  const now = settings.value;
  if (!now.prompt.trim()) {
    problem($("problem"), t("error_prompt"));
    mark("prompt");
    return;
  }
  if (now.keep_seed && !isSeed(now.seed)) {
    $("seed").focus();
    return;
  }
  const job = await draw(requestOf(now, present()), files());
  if (job && !settings.value.keep_seed) change({ seed: job.request.seed });
}

/** The next seeds of a picture. @param {any} job @param {number} index @param {any} capabilities */
async function vary(job, index, capabilities) {
  const request = requestOfPicture(job, index, capabilities);
  request.seed = String((BigInt(request.seed) + 1n) % (LARGEST_SEED + 1n));
  request.images = Math.min(VARIATIONS, capabilities.limits.images.max);
  /** @type {Record<string, Blob>} */
  const blobs = {};
  try {
    for (const name of ["image", "mask", "control_image"]) {
      if (job.inputs[name]) blobs[name] = await api.file(`/v1/jobs/${job.id}/inputs/${name}`);
    }
  } catch (error) {
    refused(error);
    return;
  }
  await draw(request, blobs);
}

/** @param {any} capabilities */
const toolsFor = (capabilities) => (/** @type {any} */ job, /** @type {number} */ index) => [
  button({ icon: "down", text: t("download"), class: "quiet strong", onclick: () => download(job, index) }),
  button({ icon: "more", text: t("variations"), onclick: () => vary(job, index, capabilities) }),
  capabilities.modes.includes("image") && button({
    icon: "image", text: t("use_start"),
    onclick: async () => {
      const blob = await png(job, index);
      if (!blob) return;
      change({ ...settingsOfPicture(job, index, capabilities), strength: "", keep_seed: false });
      await takePicture("image", blob, capabilities);
      $("start-fold").scrollIntoView({ block: "center" });
    },
  }),
  button({ icon: "undo", text: t("use_settings"), onclick: () => restore(job, index, capabilities) }),
  button({ icon: "compare", text: t("compare"), onclick: () => compare(job, index) }),
  button({
    icon: "copy", label: t("copy_title"),
    onclick: () => showCopies({
      request: requestOfPicture(job, index, capabilities), inputs: job.inputs,
      model: capabilities.model, origin: location.origin, auth: capabilities.auth,
    }),
  }),
  button({ icon: "trash", label: t("delete"), onclick: () => discard(job, refused) }),
].filter(Boolean);

/** The job that Escape and the button cancel: the one on the stage, else the next to be done. */
function cancellable() {
  const looking = current()?.job;
  if (looking && !queue.isFinished(looking)) return looking;
  return queue.unfinished()[0] ?? null;
}

function startCancel() {
  const cancel = () => {
    const turn = [...waiting].findLast((one) => one.on);
    const job = cancellable();
    if (turn) {
      turn.on = false;
      problem($("problem"), null);
    } else if (job) queue.cancel(job.id).catch(refused);
  };
  $("cancel").onclick = cancel;
  queue.jobs.watch(() => ($("cancel").hidden = !cancellable() && waiting.size === 0));
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && !event.defaultPrevented) cancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      $("form").requestSubmit();
    }
  });
  $("grid-dialog").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("grid-form").requestSubmit();
  });
}

/** Say what ended; go on to the next job if the page, not the user, chose the one that is shown. */
function startEndings() {
  queue.ended.watch((job) => {
    if (!job) return;
    const done = job.images.filter((/** @type {any} */ one) => one.url);
    if (job.status === "completed") {
      announce(done.length === 1 ? t("drawn", { seed: done[0].seed }) : t("drawn_many", { n: done.length }));
    } else announce(job.status === "cancelled" ? t("cancelled") : `${t("failed")}: ${job.error?.message ?? ""}`);
  });
  queue.jobs.watch(() => {
    const looking = current()?.job;
    if (!shown.value?.auto || (looking && !queue.isFinished(looking))) return;
    const next = queue.unfinished().find((job) => job.status === "running");
    if (next) show(next.id, null, true);
  });
}

function startWords() {
  $("language").onclick = switchLanguage;
  language.watch((now) => {
    translate();
    $("language").textContent = now === "en" ? "中文" : "English";
    $("language").lang = now === "en" ? "zh-CN" : "en";
    $("draw-keys").textContent = $("grid-keys").textContent = MAC ? "⌘ Enter" : "Ctrl Enter";
  });
}

/** The server's capabilities, as soon as it answers. */
async function reach() {
  for (;;) {
    try {
      return await api.capabilities();
    } catch (error) {
      if (!(error instanceof api.ApiError)) throw error;
      if (error.status === 401 || error.status === 403) problem($("problem"), error.line);
      $("connection").textContent = error.status === 0 ? t("error_network") : t("loading");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function startConnection() {
  const say = () => {
    $("connection").textContent = queue.online.value ? "" : t("interrupted_follow");
  };
  queue.online.watch(say);
  language.watch(say);
}

async function start() {
  startWords();
  $("settings").open = !PHONE.matches;
  PHONE.addEventListener("change", () => ($("settings").open = !PHONE.matches));
  const capabilities = await reach();
  $("model").textContent = capabilities.model;
  fillIn(capabilities.defaults);
  await loadInputs();
  startForm(capabilities);
  startShapes(capabilities);
  startPicturesIn(capabilities);
  startLoras(capabilities);
  startStage(toolsFor(capabilities));
  startQueue(refused);
  startHistory({ restore: (job, index) => restore(job, index, capabilities), refused });
  startCompare();
  startCopy();
  startGrid(capabilities);
  startDrop(capabilities);
  startCancel();
  startConnection();
  $("form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    drawForm();
  });
  await queue.start();
  startEndings();
  reattach();
  resumeGrid();
  document.body.dataset.ready = "true";
}

/** After a reload: the job at work, or the newest picture. */
function reattach() {
  const running = queue.unfinished()[0];
  const [newest] = queue.pictures();
  if (running) show(running.id, null, true);
  else if (newest) show(newest[0].id, newest[0].images.length > 1 ? newest[1] : null);
}

start();
