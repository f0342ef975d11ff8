/** Two pictures, one over the other, with a slider between them. */

import { $, el } from "./dom.js";
import { t } from "./i18n.js";
import { pictures } from "./jobs.js";
import { toast } from "./notices.js";
import { image, point } from "./picture.js";

const MOST_CHOICES = 40;
const COMPARED = ["prompt", "negative_prompt", "seed", "steps", "guidance", "solver", "width", "height", "strength"];

export function startCompare() {
  $("compare-close").onclick = () => $("compare-dialog").close();
  $("pair-cut").addEventListener("input", cut);
}

function cut() {
  $("pair").style.setProperty("--cut", `${$("pair-cut").value}%`);
}

/**
 * @param {any} job
 * @param {number} index
 */
export function compare(job, index) {
  const others = pictures().filter(([other, at]) => other !== job || at !== index);
  if (!others.length) {
    toast([t("compare_needs_two")]);
    return;
  }
  const choices = others.slice(0, MOST_CHOICES);
  const here = pictures().findIndex(([other, at]) => other === job && at === index);
  const first = pictures()[here + 1] ?? others[0];
  const strip = choices.map(([other, at]) =>
    el("button", {
      type: "button", class: "thumb", "aria-label": `${other.request.prompt}, ${t("seed")} ${other.images[at].seed}`,
      onclick: () => choose(other, at),
    }, image(other, at, { loading: "lazy", alt: "" })),
  );
  const choose = (/** @type {any} */ other, /** @type {number} */ at) => {
    place($("pair-left"), job, index);
    place($("pair-right"), other, at);
    tag($("tag-left"), job, index);
    tag($("tag-right"), other, at);
    $("differences").textContent = differences(job, index, other, at);
    for (const [which, [one, one_index]] of choices.entries()) {
      strip[which].setAttribute("aria-pressed", String(one === other && one_index === at));
    }
  };
  $("compare-with").replaceChildren(...strip);
  const { width, height } = job.images[index];
  $("pair").style.setProperty("--ratio", String(width / height));
  $("pair").style.aspectRatio = `${width} / ${height}`;
  $("pair-cut").value = "50";
  cut();
  choose(...first);
  $("compare-dialog").showModal();
  $("pair-cut").focus();
}

/**
 * @param {HTMLImageElement} place
 * @param {any} job
 * @param {number} index
 */
function place(place, job, index) {
  point(place, job, index);
  place.src = job.images[index].url;
  place.alt = `${job.request.prompt}, ${t("seed")} ${job.images[index].seed}`;
}

/**
 * @param {HTMLElement} place
 * @param {any} job
 * @param {number} index
 */
function tag(place, job, index) {
  place.textContent = `${t("seed")} ${job.images[index].seed}`;
}

/**
 * What differs, in words: `Steps 4 | 20`.
 * @param {any} one
 * @param {number} index
 * @param {any} other
 * @param {number} at
 */
function differences(one, index, other, at) {
  const left = { ...one.request, seed: one.images[index].seed };
  const right = { ...other.request, seed: other.images[at].seed };
  const names = { negative_prompt: "negative" };
  const found = COMPARED.filter((name) => String(left[name] ?? "") !== String(right[name] ?? "")).map(
    (name) => `${t(names[/** @type {keyof names} */ (name)] ?? name)}: ${left[name] || "–"} | ${right[name] || "–"}`,
  );
  return found.join("   ·   ") || t("compare_same");
}
