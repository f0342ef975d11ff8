/** The form: every control shows the settings and changes them. */

import { $, el } from "./dom.js";
import { language, t } from "./i18n.js";
import { isSeed } from "./recorded.js";
import { change, inputs, settings } from "./settings.js";

const FIELDS = {
  prompt: "prompt", negative: "negative_prompt", width: "width", height: "height", images: "images",
  steps: "steps", guidance: "guidance", strength: "strength", "control-scale": "control_scale",
  solver: "solver",
};
const RANGES = { steps: "steps", guidance: "guidance", strength: "strength", "control-scale": "control_scale" };
const FINE_STEPS = 20;
/** Sliders end where values stop being useful; the number beside them takes all. */
const USEFUL = { steps: 60, guidance: 12, control_scale: 2 };

/** @param {any} capabilities */
export function startForm(capabilities) {
  const { limits } = capabilities;
  for (const name of ["width", "height", "steps", "guidance", "images"]) {
    Object.assign($(name), { min: limits[name].min, max: limits[name].max });
  }
  for (const name of ["width", "height"]) $(name).step = limits.size_step;
  for (const [id, name] of Object.entries(FIELDS)) {
    $(id).addEventListener("input", () => change({ [name]: $(id).value }));
  }
  for (const [id, name] of Object.entries(RANGES)) {
    const range = $(`${id}-range`);
    const limit = limits[name] ?? { min: 0, max: 2 };
    range.min = limit.min;
    range.max = Math.min(limit.max, USEFUL[/** @type {keyof USEFUL} */ (name)] ?? limit.max);
    range.addEventListener("input", () => change({ [name]: range.value }));
  }
  $("binned").addEventListener("change", () => change({ binned: $("binned").checked }));
  startSeed();
  startPace(capabilities);
  if ($("prompt").value && !settings.value.prompt) change({ prompt: $("prompt").value });
  if (settings.value.negative_prompt) $("negative-fold").open = true;
  settings.watch(() => show(capabilities));
  inputs.watch(() => show(capabilities));
  language.watch(() => show(capabilities));
}

function startSeed() {
  $("seed").addEventListener("input", () => {
    const seed = $("seed").value.trim();
    change({ seed, keep_seed: seed !== "" });
  });
  $("dice").onclick = () => {
    const [seed] = crypto.getRandomValues(new Uint32Array(1));
    change({ seed: String(seed), keep_seed: true });
  };
  $("keep-seed").onclick = () => {
    const { seed, keep_seed } = settings.value;
    if (!keep_seed && seed === "") $("dice").click();
    else change({ keep_seed: !keep_seed });
  };
}

/** Two buttons for models that have a distilled network too. @param {any} capabilities */
function startPace({ few_step }) {
  $("pace").hidden = !few_step;
  if (!few_step) return;
  $("pace-fast").onclick = () => change({ steps: String(few_step.steps.at(-1)), guidance: "", solver: "" });
  $("pace-fine").onclick = () => change({ steps: String(FINE_STEPS), guidance: "", solver: "" });
}

/**
 * Where a slider stands while its number is left to the server.
 * @param {string} name
 * @param {any} defaults
 */
function unset(name, defaults) {
  if (name === "strength" && inputs.value.mask) return "1";
  return String(defaults[name] ?? 1);
}

/** @param {any} capabilities */
function show(capabilities) {
  const now = settings.value;
  for (const [id, name] of Object.entries(FIELDS)) {
    if (id === "solver") continue;
    const value = /** @type {any} */ (now)[name];
    if ($(id).value !== value) $(id).value = value;
  }
  for (const [id, name] of Object.entries(RANGES)) {
    const value = /** @type {any} */ (now)[name];
    $(`${id}-range`).value = value === "" ? unset(name, capabilities.defaults) : value;
  }
  $("seed").value = now.seed;
  $("seed").classList.toggle("passing", !now.keep_seed);
  $("keep-seed").setAttribute("aria-pressed", String(now.keep_seed));
  const wrong = now.keep_seed && !isSeed(now.seed);
  $("seed").setAttribute("aria-invalid", String(wrong));
  $("seed-hint").textContent = wrong
    ? t("error_seed", { max: capabilities.limits.seed.max > 2 ** 53 ? "2^63 - 1" : capabilities.limits.seed.max })
    : t(now.keep_seed ? "seed_fixed" : "seed_next");
  $("binned").checked = now.binned;
  showSolvers(capabilities, now.solver);
  showPace(capabilities, now.steps || String(capabilities.defaults.steps));
  $("gist").textContent = `${now.width} × ${now.height} · ${now.images}`;
  grow($("prompt"));
  grow($("negative"));
}

/**
 * @param {any} capabilities
 * @param {string} steps
 */
function showPace({ few_step }, steps) {
  $("few-step").hidden = !few_step;
  if (!few_step) return;
  const most = few_step.steps.at(-1);
  $("few-step").textContent = t("few_step", { steps: `${few_step.steps[0]}–${most}` });
  $("pace-fast").textContent = t("pace_fast", { n: most });
  $("pace-fine").textContent = t("pace_fine", { n: FINE_STEPS });
  $("pace-fast").setAttribute("aria-pressed", String(steps === String(most)));
  $("pace-fine").setAttribute("aria-pressed", String(steps === String(FINE_STEPS)));
}

/**
 * @param {any} capabilities
 * @param {string} chosen
 */
function showSolvers({ solvers, defaults }, chosen) {
  const first = el("option", { value: "" }, t("default_solver", { name: defaults.solver }));
  const rest = solvers.map((/** @type {string} */ name) => el("option", { value: name }, name));
  $("solver").replaceChildren(first, ...rest);
  $("solver").value = chosen;
}

/** As high as its text, within bounds that the style sheet sets. @param {HTMLTextAreaElement} area */
function grow(area) {
  area.style.height = "auto";
  if (area.scrollHeight) area.style.height = `${area.scrollHeight + 2}px`;
}

/** Mark the field that a refusal names, or none. @param {string | null} name */
export function mark(name) {
  for (const [id, field] of Object.entries(FIELDS)) {
    const wrong = field === name;
    $(id).setAttribute("aria-invalid", String(wrong));
    if (!wrong) continue;
    for (let fold = $(id).closest("details"); fold; fold = fold.parentElement.closest("details")) {
      fold.open = true;
    }
    $(id).focus();
  }
}
