/** Shapes: the sizes that the model was trained at, by their aspect ratio. */

import { $, el } from "./dom.js";
import { language } from "./i18n.js";
import { change, settings } from "./settings.js";

const RATIOS = [[1, 1], [4, 3], [3, 2], [16, 9], [3, 4], [2, 3], [9, 16]];
const NEAR = 0.1;

/**
 * The size nearest to each common ratio, where one is near enough.
 * @param {[number, number][]} sizes
 * @returns {{label: string, width: number, height: number}[]}
 */
export function shapes(sizes) {
  return RATIOS.flatMap(([across, down]) => {
    const [width, height] = nearest(sizes, across / down);
    const far = Math.abs(Math.log(width / height / (across / down))) > NEAR;
    return far ? [] : [{ label: `${across}:${down}`, width, height }];
  });
}

/**
 * @param {[number, number][]} sizes
 * @param {number} ratio
 */
export function nearest(sizes, ratio) {
  const far = (/** @type {[number, number]} */ [w, h]) => Math.abs(Math.log(w / h / ratio));
  return sizes.reduce((best, size) => (far(size) < far(best) ? size : best));
}

/** @param {any} capabilities */
export function startShapes(capabilities) {
  const known = shapes(capabilities.sizes);
  const draw = () => {
    const { width, height } = settings.value;
    const on = known.findIndex((one) => String(one.width) === width && String(one.height) === height);
    const buttons = known.map((one, index) => chip(one, index === on, index === Math.max(on, 0)));
    const focused = $("shapes").contains(document.activeElement);
    $("shapes").replaceChildren(...buttons);
    if (focused) buttons[Math.max(on, 0)].focus();
  };
  settings.watch(draw);
  language.watch(draw);
  $("shapes").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...$("shapes").children];
    const at = all.indexOf(document.activeElement);
    const next = known[(at + step + known.length) % known.length];
    change({ width: String(next.width), height: String(next.height) });
  });
  $("swap").onclick = () => change({ width: settings.value.height, height: settings.value.width });
}

/**
 * @param {{label: string, width: number, height: number}} shape
 * @param {boolean} on
 * @param {boolean} reachable by Tab; the arrows lead to the others
 */
function chip({ label, width, height }, on, reachable) {
  const figure = el("span", { class: "outline", "aria-hidden": "true" });
  const longest = Math.max(width, height);
  figure.style.width = `${(18 * width) / longest}px`;
  figure.style.height = `${(18 * height) / longest}px`;
  return el(
    "button",
    {
      type: "button", class: "shape", role: "radio", "aria-checked": String(on),
      tabindex: reachable ? "0" : "-1", title: `${width} × ${height}`,
      "aria-label": `${label}, ${width} × ${height}`,
      onclick: () => change({ width: String(width), height: String(height) }),
    },
    el("span", { class: "frame", "aria-hidden": "true" }, figure),
    label,
  );
}
