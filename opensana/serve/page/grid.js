/**
 * A grid: one picture for each pair of values of two settings, with all else equal. The last one
 * is kept in this browser: after a reload it is there again, and what was not yet sent is sent.
 */

import { ApiError, newKey } from "./api.js";
import { Cell, framed } from "./cell.js";
import { $, button, el } from "./dom.js";
import { language, t } from "./i18n.js";
import * as queue from "./jobs.js";
import * as local from "./local.js";
import { announce, problem } from "./notices.js";
import { download, image, png, save } from "./picture.js";
import { isSeed } from "./recorded.js";
import { files, present, requestOf, settings } from "./settings.js";

const MOST = 64;
const AXES = {
  none: "axis_none", steps: "steps", guidance: "guidance", seed: "seed", words: "prompt_words",
  strength: "strength",
};
const EXAMPLES = { steps: "4, 10, 20", guidance: "1, 3, 4.5, 7", seed: "1-4", words: "red, green, blue", strength: "0.3, 0.6, 0.9" };

/** @typedef {{axis: string, text: string, values: string[]}} Axis */
/** @typedef {{request: any, key: string, job: string | null}} Square its job once it is sent */
/** @typedef {{x: Axis, y: Axis, squares: Square[], files: Record<string, Blob>, sending: boolean}} Grid */
/** @type {Cell<Grid | null>} */
const sheet = new Cell(/** @type {any} */ (null));

/** A value that cannot be used, in one line. */
class BadValue extends Error {}

/**
 * The values of an axis: a list with commas; `1-4` is each whole number from 1 to 4.
 * @param {string} axis
 * @param {string} text
 * @param {any} limits
 * @returns {Axis}
 */
export function readAxis(axis, text, limits) {
  if (axis === "none") return { axis, text, values: [""] };
  const parts = text.split(/[,,]/).map((part) => part.trim()).filter(Boolean);
  const values = parts.flatMap((part) => (axis === "words" ? [part] : spread(part, axis, limits)));
  if (!values.length) bad("–", axis);
  return { axis, text, values };
}

/**
 * @param {string} part
 * @param {string} axis
 * @param {any} limits
 */
function spread(part, axis, limits) {
  const range = /^(\d+)\s*-\s*(\d+)$/.exec(part);
  if (range && (axis === "seed" || axis === "steps")) {
    const [first, last] = [BigInt(range[1]), BigInt(range[2])];
    if (last < first || last - first >= BigInt(MOST)) bad(part, axis);
    return Array.from({ length: Number(last - first) + 1 }, (_, at) => checked(String(first + BigInt(at)), axis, limits));
  }
  return [checked(part, axis, limits)];
}

/**
 * @param {string} value
 * @param {string} axis
 * @param {any} limits
 */
function checked(value, axis, limits) {
  if (axis === "seed") return isSeed(value) ? value : bad(value, axis);
  const number = Number(value);
  const { min, max } = limits[axis];
  const good = Number.isFinite(number) && number >= min && number <= max && (axis !== "steps" || Number.isInteger(number));
  return good ? value : bad(value, axis);
}

/**
 * @param {string} value
 * @param {string} axis
 * @returns {never}
 */
function bad(value, axis) {
  const example = EXAMPLES[/** @type {keyof EXAMPLES} */ (axis)];
  throw new BadValue(t("grid_value", { value, axis: t(AXES[/** @type {keyof AXES} */ (axis)]), example }));
}

/**
 * Settings with the values of both axes put in.
 * @param {import("./settings.js").Settings} base
 * @param {[Axis, string][]} picked
 */
export function withValues(base, picked) {
  const found = { ...base, images: "1" };
  for (const [{ axis, values }, value] of picked) {
    if (axis === "none") continue;
    if (axis === "words") {
      if (!found.prompt.includes(values[0])) throw new BadValue(t("grid_word", { word: values[0] }));
      found.prompt = found.prompt.replace(values[0], () => value);
    } else Object.assign(found, { [axis]: value, ...(axis === "seed" ? { keep_seed: true } : {}) });
  }
  return found;
}

/** @param {any} capabilities */
export function startGrid(capabilities) {
  const { limits } = capabilities;
  const dialog = $("grid-dialog");
  const [x, y] = [$("grid-x"), $("grid-y")];
  const names = () => {
    for (const [select, first] of [[x, "seed"], [y, "guidance"]]) {
      const chosen = select.value || first;
      const known = Object.entries(AXES).filter(([axis]) =>
        (axis !== "none" || select === y) && (axis !== "strength" || present().image));
      select.replaceChildren(...known.map(([axis, key]) => el("option", { value: axis }, t(key))));
      select.value = known.some(([axis]) => axis === chosen) ? chosen : first;
    }
    hint();
  };
  const hint = () => {
    for (const [select, input] of [[x, $("grid-x-values")], [y, $("grid-y-values")]]) {
      input.placeholder = EXAMPLES[/** @type {keyof EXAMPLES} */ (select.value)] ?? "";
      input.disabled = select.value === "none";
    }
    let count = "";
    try {
      count = t("grid_count", { n: axis("x", limits).values.length * axis("y", limits).values.length });
    } catch {
      // Said when the grid is to be drawn.
    }
    const words = [x, y].some((select) => select.value === "words") ? t("grid_words_hint") : "";
    $("grid-hint").textContent = `${count} ${words}`.trim();
  };
  language.watch(names);
  for (const one of [x, y, $("grid-x-values"), $("grid-y-values")]) one.addEventListener("input", hint);
  const show = framed(showSheet);
  $("grid-open").onclick = () => {
    names();
    dialog.showModal();
    show();
    x.focus();
  };
  $("grid-close").onclick = () => dialog.close();
  $("grid-form").onsubmit = (/** @type {Event} */ event) => {
    event.preventDefault();
    draw(limits);
  };
  $("grid-cancel").onclick = stop;
  $("grid-save").onclick = saveSheet;
  queue.jobs.watch(show);
  sheet.watch(show);
  language.watch(show);
}

/**
 * @param {"x" | "y"} which
 * @param {any} limits
 */
function axis(which, limits) {
  const values = $(`grid-${which}-values`);
  return readAxis($(`grid-${which}`).value, values.value || values.placeholder, limits);
}

/** The grid of the last visit, once the jobs are known. */
export async function resumeGrid() {
  /** @type {Grid | undefined} */
  const kept = await local.keptGrid();
  if (!kept) return;
  for (const [which, { axis, text }] of /** @type {[string, Axis][]} */ (Object.entries({ x: kept.x, y: kept.y }))) {
    $(`grid-${which}`).value = axis;
    $(`grid-${which}-values`).value = text;
  }
  sheet.value = kept;
  await told(async () => {
    for (const { job } of kept.squares) if (job) await queue.learn(job);
    if (kept.sending) await send(kept);
  });
}

/** @param {any} limits */
async function draw(limits) {
  if (sheet.value?.sending) return;
  await told(async () => {
    const [x, y] = [axis("x", limits), axis("y", limits)];
    const count = x.values.length * y.values.length;
    if (count > MOST) throw new BadValue(t("grid_too_many", { n: count, most: MOST }));
    if (!settings.value.prompt.trim()) throw new BadValue(t("error_prompt"));
    const base = { ...settings.value };
    if (!base.keep_seed || !base.seed) {
      Object.assign(base, { keep_seed: true, seed: String(crypto.getRandomValues(new Uint32Array(1))[0]) });
    }
    const all = y.values.flatMap((down) => x.values.map((across) => withValues(base, [[x, across], [y, down]])));
    const squares = all.map((one) => ({ request: requestOf(one, present()), key: newKey(), job: null }));
    await send({ x, y, squares, files: files(), sending: true });
  });
}

/** What is refused, in one line. @param {() => Promise<void>} work */
async function told(work) {
  problem($("grid-problem"), null);
  try {
    await work();
  } catch (error) {
    if (!(error instanceof BadValue) && !(error instanceof ApiError)) throw error;
    problem($("grid-problem"), error instanceof ApiError ? error.line : error.message);
  }
}

/**
 * One job after another; where the queue is full, as soon as it has room again.
 * @param {Grid} grid
 */
async function send(grid) {
  sheet.value = grid;
  await local.keepGrid(grid);
  const waits = (/** @type {number} */ s) => {
    if (s) $("grid-progress").textContent = t("queue_waits", { s });
    return grid.sending;
  };
  try {
    for (const square of grid.squares) {
      if (square.job) continue;
      const job = await queue.submit(square.request, grid.files, waits, square.key);
      square.job = job?.id ?? null;
      if (!grid.sending) break;
      await local.keepGrid(grid);
      sheet.touch();
    }
  } finally {
    grid.sending = false;
    await local.keepGrid(grid);
    sheet.touch();
  }
}

function stop() {
  const now = sheet.value;
  if (!now) return;
  now.sending = false;
  for (const { job } of now.squares) {
    const found = job && queue.jobs.value.get(job);
    if (found && !queue.isFinished(found)) queue.cancel(job).catch(() => {});
  }
  sheet.touch();
}

let structure = "";

function showSheet() {
  const now = sheet.value;
  if (!now || !$("grid-dialog").open) return;
  const found = now.squares.map(({ job }) => (job ? queue.jobs.value.get(job) : null));
  const done = found.filter((job) => job?.images[0].url).length;
  const busy = now.sending || found.some((job) => job && !queue.isFinished(job));
  $("grid-draw").hidden = busy;
  $("grid-cancel").hidden = !busy;
  $("grid-save").hidden = busy || done === 0;
  if (found.some(Boolean)) $("grid-progress").textContent = t("grid_progress", { done, n: now.squares.length });
  const next = JSON.stringify([now.x, now.y, found.map((job) => [job?.id, job?.status]), language.value, busy]);
  if (next === structure) return;
  if (!busy && structure && done) announce(t("drawn_many", { n: done }));
  structure = next;
  $("sheet").replaceChildren(table(now, busy));
}

/**
 * @param {Grid} grid
 * @param {boolean} busy
 */
function table({ x, y, squares }, busy) {
  const head = el("tr", {}, el("td"), ...x.values.map((value) => el("th", { scope: "col" }, label(x, value))));
  const rows = y.values.map((down, row) =>
    el("tr", {}, el("th", { scope: "row" }, label(y, down)),
      ...x.values.map((_, column) => el("td", {}, cell(squares[row * x.values.length + column], busy)))));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
}

/**
 * @param {Axis} of
 * @param {string} value
 */
const label = (of, value) =>
  of.axis === "none" ? "" : of.axis === "words" ? value : `${t(AXES[/** @type {keyof AXES} */ (of.axis)])} ${value}`;

/**
 * @param {Square} square
 * @param {boolean} busy whether one that is not there may still come
 */
function cell({ job: id, request }, busy) {
  const job = id && queue.jobs.value.get(id);
  if (job?.images[0].url) {
    const made = button({ class: "pick", label: `${t("download")}: ${job.images[0].seed}`, onclick: () => download(job, 0) });
    made.append(image(job, 0));
    return made;
  }
  const over = job ? queue.isFinished(job) : !busy;
  const why = job?.status === "failed" ? "cell_failed" : job ? "cancelled" : "cell_none";
  const made = over
    ? el("div", { class: "gone", title: job?.error?.message ?? "" }, t(why))
    : el("div", { class: job?.status === "running" ? "wait" : "wait still" });
  made.style.aspectRatio = `${request.width || 1} / ${request.height || 1}`;
  return made;
}

/** The whole sheet as one picture, with the values at its edges. */
async function saveSheet() {
  const { x, y, squares } = /** @type {Grid} */ (sheet.value);
  const pictures = await Promise.all(
    squares.map(async ({ job }) => {
      const found = job && queue.jobs.value.get(job);
      const blob = found?.images[0].url ? await png(found, 0) : null;
      return blob && createImageBitmap(blob);
    }),
  );
  const side = { w: Math.max(...pictures.map((one) => one?.width ?? 0)), h: Math.max(...pictures.map((one) => one?.height ?? 0)) };
  const font = Math.max(14, Math.round(side.h / 14));
  const [left, top, gap] = [y.axis === "none" ? 0 : font * 7, font * 2, Math.round(font / 3)];
  const canvas = new OffscreenCanvas(left + x.values.length * (side.w + gap), top + y.values.length * (side.h + gap));
  const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(pen, { fillStyle: "#222", font: `${font}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle" });
  for (const [column, value] of x.values.entries()) {
    pen.fillText(label(x, value), left + column * (side.w + gap) + side.w / 2, top / 2, side.w);
  }
  for (const [row, value] of y.values.entries()) {
    pen.fillText(label(y, value), left / 2, top + row * (side.h + gap) + side.h / 2, left - gap);
    for (const column of x.values.keys()) {
      const picture = pictures[row * x.values.length + column];
      if (picture) pen.drawImage(picture, left + column * (side.w + gap), top + row * (side.h + gap));
    }
  }
  save(await canvas.convertToBlob({ type: "image/png" }), "opensana-grid.png");
}
