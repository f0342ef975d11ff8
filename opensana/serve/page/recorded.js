/**
 * The settings that a dropped picture records: ours (chunk `opensana`), or A1111's (`parameters`).
 * Only values of the right kind and within the server's limits come through.
 */

import { t } from "./i18n.js";
import { readInfotext } from "./infotext.js";
import { parse } from "./json.js";
import { readTexts } from "./png.js";
import { impliedSolver, settingsOf } from "./settings.js";

const LARGEST_SEED = 2n ** 63n - 1n;
const LONGEST_PROMPT = 32_000;

/**
 * @param {Blob} file
 * @param {any} capabilities
 * @returns {Promise<{settings: any, notes: string[], ours: boolean} | null>} null: it records none
 */
export async function readRecorded(file, capabilities) {
  const texts = await readTexts(file);
  const ours = texts.opensana ? readOurs(texts.opensana) : null;
  const found = ours ?? (texts.parameters ? readInfotext(texts.parameters) : null);
  if (!found || typeof found.request.prompt !== "string" || !found.request.prompt.trim()) return null;
  /** @type {string[]} */
  const notes = [];
  const loras = listed(found.loras, capabilities, notes);
  const request = checked(found.request, loras.length > 0, capabilities, notes);
  if (ours) notes.push(...missing(ours.note));
  if (found.model && !capabilities.models.includes(found.model)) {
    notes.push(t("note_model", { model: found.model.slice(0, 80), here: capabilities.model }));
  }
  return { settings: settingsOf(request, loras), notes, ours: !!ours };
}

/** @param {string} text */
function readOurs(text) {
  try {
    const note = parse(text);
    const { request, model } = note;
    if (note.format !== 1 || typeof request !== "object" || request === null) return null;
    return { request, loras: lorasOf(note), model: typeof model === "string" ? model : "", note };
  } catch {
    return null;
  }
}

/**
 * The LoRAs that our pictures record: a value each for one, lists for several.
 * @param {any} note
 * @returns {{name: string, scale: number, sha256: string}[]}
 */
function lorasOf(note) {
  const [names, sums, scales] = ["lora_name", "lora_sha256", "lora_scale"].map((key) => [note[key] ?? []].flat());
  return sums.map((sha256, at) => ({ name: String(names[at] ?? sha256), scale: scales[at], sha256 }));
}

/**
 * Those that this server lists, a file by its digest where that is known; a note for each other.
 * @param {{name: string, scale: number, sha256?: string}[]} wanted
 * @param {any} capabilities
 * @param {string[]} notes
 */
function listed(wanted, capabilities, notes) {
  const good = [];
  for (const { name, scale, sha256 } of wanted) {
    const same = (/** @type {any} */ one) => (sha256 ? one.sha256 === sha256 : one.name === name);
    const here = capabilities.loras.find(same);
    if (here && Number.isFinite(scale)) good.push({ name: here.name, scale });
    else notes.push(t("note_lora_unknown", { name: name.slice(0, 80) }));
  }
  return good;
}

/** What the picture was drawn from, which its digests cannot bring back. @param {any} note */
function missing(note) {
  const keys = {
    image_sha256: "note_image", mask_sha256: "note_mask", control_image_sha256: "note_control",
  };
  return Object.entries(keys).filter(([key]) => key in note).map(([, words]) => t(words));
}

/**
 * Those of the values that this server takes; a note for each other.
 * @param {any} request
 * @param {boolean} with_loras
 * @param {any} capabilities
 * @param {string[]} notes
 */
function checked(request, with_loras, capabilities, notes) {
  const { limits, solvers } = capabilities;
  /** @type {Record<string, any>} */
  const good = { prompt: request.prompt.slice(0, LONGEST_PROMPT) };
  if (typeof request.negative_prompt === "string") {
    good.negative_prompt = request.negative_prompt.slice(0, LONGEST_PROMPT);
  }
  if (request.binned === true) good.binned = true;
  for (const name of ["width", "height", "steps", "guidance", "strength"]) {
    const value = request[name];
    if (value === null || value === undefined || value === "") continue;
    const { min, max } = limits[name];
    const number = typeof value === "string" ? Number(value) : value;
    const whole = name === "guidance" || name === "strength" || Number.isInteger(number);
    if (typeof number === "number" && whole && number >= min && number <= max) good[name] = number;
    else notes.push(t("note_value", { name, value: String(value).slice(0, 40) }));
  }
  if (isSeed(request.seed)) good.seed = String(request.seed);
  const implied = impliedSolver(good, with_loras || good.strength !== undefined, capabilities);
  if (request.solver && request.solver === implied) return good;
  if (solvers.includes(request.solver)) good.solver = request.solver;
  else if (request.solver) {
    notes.push(t("note_value", { name: "solver", value: String(request.solver).slice(0, 40) }));
  }
  return good;
}

/** @param {unknown} seed */
export function isSeed(seed) {
  return typeof seed === "string" && /^\d{1,19}$/.test(seed) && BigInt(seed) <= LARGEST_SEED;
}
