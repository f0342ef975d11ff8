/** Settings: what the next drawing will be. They survive a reload. */

import { Cell } from "./cell.js";
import * as local from "./local.js";

const KEY = "opensana.settings";

/**
 * @typedef {object} Settings
 * @property {string} prompt
 * @property {string} negative_prompt
 * @property {string} width numbers are kept as they were typed; empty: the server's default
 * @property {string} height
 * @property {string} steps
 * @property {string} guidance
 * @property {string} images
 * @property {string} seed
 * @property {boolean} keep_seed whether every drawing uses this seed
 * @property {string} solver
 * @property {string} strength
 * @property {string} control_scale
 * @property {boolean} binned
 * @property {{name: string, scale: string}[]} loras
 */

/** @type {Settings} */
export const EMPTY = {
  prompt: "", negative_prompt: "", width: "", height: "", steps: "", guidance: "", images: "1",
  seed: "", keep_seed: false, solver: "", strength: "", control_scale: "1", binned: false, loras: [],
};

/** @type {Cell<Settings>} */
export const settings = new Cell(read());

/** Pictures that go with them. @type {Cell<{image: Blob | null, mask: Blob | null, control_image: Blob | null}>} */
export const inputs = new Cell(/** @type {any} */ ({ image: null, mask: null, control_image: null }));

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    return { ...EMPTY, ...kept };
  } catch {
    return { ...EMPTY };
  }
}

/** @param {Partial<Settings>} changes */
export function change(changes) {
  settings.value = { ...settings.value, ...changes };
  localStorage.setItem(KEY, JSON.stringify(settings.value));
}

/**
 * A picture to start from or to follow, or none; without a picture there is no mask.
 * @param {"image" | "mask" | "control_image"} name
 * @param {Blob | null} blob
 */
export function setInput(name, blob) {
  const next = { ...inputs.value, [name]: blob };
  if (name === "image") next.mask = null;
  inputs.value = next;
  local.keepInput(name, blob);
  if (name === "image") local.keepInput("mask", null);
}

/** The pictures of the last visit. */
export async function loadInputs() {
  const [image, mask, control_image] = await Promise.all(
    ["image", "mask", "control_image"].map(async (name) => (await local.keptInput(name)) ?? null),
  );
  inputs.value = { image, mask: image && mask, control_image };
}

/**
 * The size that the server draws by default, where none was chosen yet. Steps, guidance and
 * strength stay empty until the user chooses: what is best depends on the other settings.
 * @param {any} defaults
 */
export function fillIn({ width, height }) {
  if (!settings.value.width) change({ width: String(width), height: String(height) });
}

/**
 * The solver that the server takes for a request that names none.
 * @param {any} request
 * @param {boolean} with_more whether it starts from a picture or has LoRAs
 * @param {any} capabilities
 */
export function impliedSolver(request, with_more, { few_step, defaults }) {
  const plain = !with_more && !request.negative_prompt?.trim();
  if (few_step && plain && few_step.steps.includes(Number(request.steps))) return "scm";
  return few_step && defaults.solver === "scm" ? "flow_dpm" : defaults.solver;
}

/**
 * The request of some settings, as the API takes it; the seed is text, see json.js.
 * @param {Settings} of
 * @param {{image: boolean, mask: boolean, control_image: boolean}} has
 */
export function requestOf(of, has) {
  /** @type {Record<string, any>} */
  const request = { prompt: of.prompt };
  if (of.negative_prompt.trim()) request.negative_prompt = of.negative_prompt;
  for (const name of ["width", "height", "steps", "guidance", "images"]) {
    if (of[name].trim() !== "" && !(name === "images" && of[name] === "1")) {
      request[name] = numberOf(of[name]);
    }
  }
  if (of.keep_seed && of.seed.trim()) request.seed = of.seed.trim();
  if (of.solver) request.solver = of.solver;
  if (has.image && of.strength.trim() !== "") request.strength = numberOf(of.strength);
  if (of.binned && !has.image) request.binned = true;
  if (has.control_image && of.control_scale.trim() !== "" && numberOf(of.control_scale) !== 1) {
    request.control_scale = numberOf(of.control_scale);
  }
  const loras = of.loras.filter((one) => one.name);
  if (loras.length) {
    request.lora = loras.map(({ name, scale }) => (scale.trim() ? { name, scale: numberOf(scale) } : { name }));
  }
  return request;
}

/**
 * What was typed as a number; the text itself if it is none, for the server to refuse by name.
 * @param {string} text
 */
function numberOf(text) {
  const number = Number(text);
  return Number.isFinite(number) ? number : text;
}

/** The files of the pictures that are there. @returns {Record<string, Blob>} */
export function files() {
  return Object.fromEntries(Object.entries(inputs.value).filter(([, blob]) => blob));
}

/** Which pictures are there. */
export function present() {
  const { image, mask, control_image } = inputs.value;
  return { image: !!image, mask: !!mask, control_image: !!control_image };
}

/**
 * The settings of a request: what it leaves out is empty. One picture, that of its seed.
 * @param {any} request
 * @param {{name: string, scale: number}[]} loras
 * @returns {Settings}
 */
export function settingsOf(request, loras) {
  /** @type {any} */
  const found = { ...EMPTY };
  for (const [name, value] of Object.entries(request)) {
    if (!(name in EMPTY) || value === null || value === undefined) continue;
    found[name] = typeof value === "boolean" ? value : String(value);
  }
  found.images = "1";
  found.keep_seed = found.seed !== "";
  found.loras = loras.map((one) => ({ name: one.name, scale: String(one.scale) }));
  return found;
}
