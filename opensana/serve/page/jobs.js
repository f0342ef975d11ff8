/**
 * All jobs that the page knows: the server's, and those that only this browser still has. The ones
 * at work are followed by their events, further ones by asking now and then: a browser opens only
 * six connections to one server.
 */

import * as api from "./api.js";
import { Cell } from "./cell.js";
import { follow } from "./events.js";
import * as local from "./local.js";

const MOST_FOLLOWED = 3;
const POLL_MS = 1500;
const PAGE = 60;
const LINGER_MS = 4000;
const WAIT_S = 2;
const FINISHED = new Set(["completed", "failed", "cancelled"]);

/** @type {Cell<Map<string, any>>} */
export const jobs = new Cell(new Map());
/** Blob URLs of the newest previews, by picture. @type {Map<string, string>} */
export const previews = new Map();
/** Whether the server answers. */
export const online = new Cell(true);
/** Whether the server has older jobs than those that are here. */
export const older = new Cell(false);
/** The job whose picture is shown; it is followed first. @type {Cell<string | null>} */
export const watched = new Cell(/** @type {string | null} */ (null));
/** The last job that ended while the page looked. @type {Cell<any>} */
export const ended = new Cell(null);

/** @type {Map<string, () => void>} */
const followed = new Map();
/** When a job's time left was said, in ms. @type {Map<string, number>} */
const told = new Map();
let polling = 0;
let oldest = "";
/** @type {Set<string>} */
let kept = new Set();

/** @param {any} job */
export const isFinished = (job) => FINISHED.has(job.status);

/**
 * @param {any} job
 * @param {number} index
 */
export const pictureKey = (job, index) => `${job.id}/${index}`;

/** Newest first. */
export const newestFirst = () =>
  [...jobs.value.values()].sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));

/** Unfinished jobs, the next to be done first. */
export const unfinished = () =>
  newestFirst().reverse().filter((job) => !isFinished(job));

/** Every finished picture, newest first: [job, index]. @returns {[any, number][]} */
export function pictures() {
  return newestFirst().flatMap((job) =>
    job.images.filter((/** @type {any} */ one) => one.url).map((/** @type {any} */ one) => [job, one.index]),
  );
}

/**
 * Seconds until a job ends, as of now; null if unknown.
 * @param {any} job
 */
export function timeLeft(job) {
  if (job.eta_s === null || job.eta_s === undefined) return null;
  return Math.max(0, job.eta_s - (Date.now() - (told.get(job.id) ?? Date.now())) / 1000);
}

/** @param {any} job */
function put(job) {
  const before = jobs.value.get(job.id);
  jobs.value.set(job.id, job);
  told.set(job.id, Date.now());
  if (!isFinished(job)) return;
  for (const { index } of job.images) dropPreview(pictureKey(job, index));
  if (before && isFinished(before)) return;
  if (job.images.some((/** @type {any} */ one) => one.url)) keep(job);
  if (before) ended.value = job;
}

/** Replace a preview, or end it. @param {string} key @param {string} [next] */
function setPreview(key, next) {
  const url = previews.get(key);
  if (url) URL.revokeObjectURL(url);
  if (next) previews.set(key, next);
  else previews.delete(key);
}

/** The preview stays under its picture until that has surely come. @param {string} key */
function dropPreview(key) {
  setTimeout(() => setPreview(key), LINGER_MS);
}

/** A job and its pictures, into this browser. @param {any} job */
async function keep(job) {
  await local.keepJob(job);
  for (const { index, url } of job.images) {
    const key = pictureKey(job, index);
    if (!url || kept.has(key)) continue;
    kept.add(key);
    await api.file(url).then((png) => local.keepPicture(key, png)).catch(() => kept.delete(key));
  }
}

/**
 * @param {string} id
 * @param {any} data
 */
function apply(id, data) {
  online.value = true;
  if (data.job) put(data.job);
  const job = jobs.value.get(id);
  if (!job) return;
  const picture = job.images[data.image];
  if ("eta_s" in data) {
    job.eta_s = data.eta_s;
    told.set(id, Date.now());
  }
  if (data.type === "queued") job.queue_position = data.queue_position;
  if (data.type === "started") Object.assign(job, { status: "running", queue_position: null });
  if (data.type === "note") job.notes = [...job.notes, data.message];
  if (data.type === "step" && picture) {
    Object.assign(picture, { step: data.step, steps: data.steps, status: "drawing" });
    Object.assign(job, { status: "running", progress: data.progress });
  }
  if (data.type === "image" && picture) {
    Object.assign(picture, { status: "completed", url: data.url, seed: data.seed });
    dropPreview(pictureKey(job, data.image));
  }
  if (data.type === "preview" && picture) {
    setPreview(pictureKey(job, data.image), URL.createObjectURL(pngOf(data.b64_json)));
  }
  jobs.touch();
}

/** @param {string} base64 */
function pngOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

/** Follow those that should be followed, and no others; ask about the rest. */
function attend() {
  const open = unfinished();
  const first = open.sort((a, b) => rank(a) - rank(b)).slice(0, MOST_FOLLOWED);
  const wanted = new Set(first.map((job) => job.id));
  for (const [id, stop] of followed) {
    if (wanted.has(id)) continue;
    stop();
    followed.delete(id);
  }
  for (const id of wanted) if (!followed.has(id)) followed.set(id, attach(id));
  if (open.length > wanted.size || !online.value) schedule();
}

/** @param {any} job */
function rank(job) {
  if (job.id === watched.value) return -1;
  return job.status === "running" ? 0 : (job.queue_position ?? 1000);
}

/** @param {string} id */
function attach(id) {
  return follow(id, {
    event: (data) => apply(id, data),
    lost: () => {
      online.value = false;
      schedule();
    },
    closed: () => {
      followed.delete(id);
      schedule(0);
    },
  });
}

/** @param {number} [wait] */
function schedule(wait = POLL_MS) {
  clearTimeout(polling);
  polling = setTimeout(refresh, wait);
}

/** The newest jobs of the server; unfinished ones that it no longer knows are gone. */
export async function refresh() {
  try {
    const page = await api.jobs(PAGE);
    online.value = true;
    const known = new Set(page.data.map((/** @type {any} */ job) => job.id));
    for (const job of page.data) if (!followed.has(job.id) || isFinished(job)) put(job);
    for (const job of unfinished()) if (!known.has(job.id)) await recheck(job);
    if (!oldest) {
      oldest = page.data.at(-1)?.id ?? "";
      older.value = page.has_more;
    }
    jobs.touch();
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    online.value = error.status !== 0;
    schedule(2 * POLL_MS);
  }
}

/** @param {any} job */
async function recheck(job) {
  try {
    put(await api.job(job.id));
  } catch (error) {
    if (!(error instanceof api.ApiError) || error.status !== 404) throw error;
    jobs.value.delete(job.id);
  }
}

/** The next page of older jobs. */
export async function more() {
  const page = await api.jobs(PAGE, oldest);
  for (const job of page.data) put(job);
  oldest = page.data.at(-1)?.id ?? oldest;
  older.value = page.has_more;
  jobs.touch();
}

/** What this browser has, then what the server has; then all changes. */
export async function start() {
  kept = await local.keptPictureKeys();
  const finished = (await local.keptJobs()).filter(isFinished);
  for (const job of finished) jobs.value.set(job.id, job);
  await refresh();
  jobs.watch(attend);
  watched.watch(attend);
  await local.prune(newestFirst());
}

/**
 * Begin a job; where the queue is full, as soon as it has room.
 * @param {Record<string, any>} request
 * @param {Record<string, Blob>} files
 * @param {(seconds: number) => boolean} waits told before and after each wait; false gives up
 * @param {string} [key] the same one never makes a second job
 */
export async function submit(request, files, waits, key = api.newKey()) {
  for (;;) {
    try {
      const job = await api.submit(request, files, key);
      put(job);
      jobs.touch();
      return job;
    } catch (error) {
      if (!(error instanceof api.ApiError) || !error.full) throw error;
      const seconds = error.wait || WAIT_S;
      if (!waits(seconds)) return null;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      if (!waits(0)) return null;
    }
  }
}

/** A job that may be older than those that are here. @param {string} id */
export async function learn(id) {
  if (!jobs.value.has(id)) await recheck({ id });
}

/** @param {string} id */
export async function cancel(id) {
  const job = await api.cancel(id);
  if (isFinished(job)) put(job);
  jobs.touch();
}

/** @param {any} job */
export async function remove(job) {
  await api.remove(job.id);
  await local.forget(job);
  jobs.value.delete(job.id);
  jobs.touch();
}
