/** One finished picture: shown, fetched, saved, and its settings; from the server or from here. */

import * as api from "./api.js";
import { el } from "./dom.js";
import { t } from "./i18n.js";
import { pictureKey } from "./jobs.js";
import * as local from "./local.js";
import { toast } from "./notices.js";
import { change, impliedSolver, inputs, requestOf, setInput, settings, settingsOf } from "./settings.js";

/**
 * An image that shows a picture; where the server no longer has it, the browser's own copy.
 * @param {any} job
 * @param {number} index
 * @param {Record<string, any>} [attributes]
 */
export function image(job, index, attributes = {}) {
  const { url, width, height } = job.images[index];
  const made = el("img", { width, height, alt: job.request.prompt, decoding: "async", ...attributes });
  point(made, job, index);
  made.src = url;
  return made;
}

/**
 * Show the copy that is here if the picture cannot be had from the server.
 * @param {HTMLImageElement} shown
 * @param {any} job
 * @param {number} index
 */
export function point(shown, job, index) {
  shown.onerror = async () => {
    shown.onerror = null;
    const png = await local.keptPicture(pictureKey(job, index));
    if (!png) return;
    const url = URL.createObjectURL(png);
    shown.onload = () => URL.revokeObjectURL(url);
    shown.src = url;
  };
}

/**
 * The PNG with its metadata; null if it is nowhere.
 * @param {any} job
 * @param {number} index
 * @returns {Promise<Blob | null>}
 */
export async function png(job, index) {
  const kept = await local.keptPicture(pictureKey(job, index));
  if (kept) return kept;
  try {
    return await api.file(job.images[index].url);
  } catch {
    toast([t("no_picture")]);
    return null;
  }
}

/**
 * @param {Blob} blob
 * @param {string} name
 */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * @param {any} job
 * @param {number} index
 */
export async function download(job, index) {
  const blob = await png(job, index);
  if (blob) save(blob, `opensana-${job.images[index].seed}.png`);
}

/**
 * The settings that draw exactly this picture again.
 * @param {any} job
 * @param {number} index
 * @param {any} capabilities
 */
export function settingsOfPicture(job, index, capabilities) {
  const request = { ...job.request, seed: String(job.images[index].seed), images: 1 };
  const loras = job.lora ?? []; // a job that was kept before there were any has no list
  const implied = impliedSolver(request, job.inputs.image || loras.length > 0, capabilities);
  if (request.solver === implied) request.solver = null;
  const found = settingsOf(request, loras);
  found.control_scale = String(job.inputs.control_scale ?? 1);
  return found;
}

/**
 * The request of a picture as it would be sent again.
 * @param {any} job
 * @param {number} index
 * @param {any} capabilities
 */
export function requestOfPicture(job, index, capabilities) {
  return requestOf(settingsOfPicture(job, index, capabilities), job.inputs);
}

/**
 * Put the settings of a picture into the form, and the pictures that it was drawn from; there is
 * a way back.
 * @param {any} job
 * @param {number} index
 * @param {any} capabilities
 */
export async function restore(job, index, capabilities) {
  const back = remember();
  change(settingsOfPicture(job, index, capabilities));
  const notes = [];
  for (const name of /** @type {const} */ (["image", "mask", "control_image"])) {
    if (!job.inputs[name]) {
      if (inputs.value[name]) setInput(name, null);
      continue;
    }
    try {
      setInput(name, await api.file(`/v1/jobs/${job.id}/inputs/${name}`));
    } catch {
      setInput(name, null);
      notes.push(t(name === "control_image" ? "note_control" : `note_${name}`));
    }
  }
  toast([t("restored"), ...notes], back);
}

/** A way back to the settings of now. */
export function remember() {
  const before = settings.value;
  const pictures = inputs.value;
  return () => {
    change(before);
    for (const name of /** @type {const} */ (["image", "mask", "control_image"])) {
      setInput(name, pictures[name]);
    }
  };
}
