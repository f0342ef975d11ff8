/** LoRAs: those that the server lists, each with its weight. */

import { $, button, el } from "./dom.js";
import { language, t } from "./i18n.js";
import { change, settings } from "./settings.js";

/** @typedef {{name: string, trigger_words: string[]}} Listed */

/** @param {{loras: Listed[]}} capabilities */
export function startLoras({ loras }) {
  if (!loras.length) change({ loras: [] });
  $("loras-fold").hidden = !loras.length;
  const unused = () => loras.filter((one) => !settings.value.loras.some((used) => used.name === one.name));
  $("lora-add").onclick = () => {
    change({ loras: [...settings.value.loras, { name: unused()[0].name, scale: "1" }] });
  };
  let shown = "";
  const draw = () => {
    const rows = settings.value.loras;
    // A row under the user's hand is not made anew.
    const shape = JSON.stringify([language.value, rows.map((one) => one.name)]);
    if (shape !== shown) {
      $("loras").replaceChildren(...rows.map((one, index) => row(one, index, loras, unused())));
      $("lora-add").disabled = !unused().length;
    }
    shown = shape;
    if (rows.length) $("loras-fold").open = true;
    for (const [index, line] of [...$("loras").children].entries()) {
      for (const input of line.querySelectorAll("input")) input.value = rows[index].scale;
    }
  };
  settings.watch(draw);
  language.watch(draw);
}

/**
 * @param {{name: string, scale: string}} one
 * @param {number} index
 * @param {Listed[]} loras
 * @param {Listed[]} unused
 */
function row(one, index, loras, unused) {
  const change_one = (/** @type {any} */ changes) =>
    change({ loras: settings.value.loras.map((lora, at) => (at === index ? { ...lora, ...changes } : lora)) });
  const names = [one.name, ...unused.map((other) => other.name)];
  const select = el(
    "select",
    { "aria-label": t("lora_name"), onchange: () => change_one({ name: select.value }) },
    ...names.sort().map((name) => el("option", { value: name }, name)),
  );
  select.value = one.name;
  const label = t("lora_weight", { name: one.name });
  const range = el("input", {
    type: "range", min: "0", max: "2", step: "0.05", "aria-label": label,
    oninput: () => change_one({ scale: range.value }),
  });
  const number = el("input", {
    type: "number", step: "any", class: "figure", "aria-label": label,
    oninput: () => change_one({ scale: number.value }),
  });
  const remove = button({
    icon: "close", label: t("lora_remove"),
    onclick: () => change({ loras: settings.value.loras.filter((_, at) => at !== index) }),
  });
  const words = loras.find((other) => other.name === one.name)?.trigger_words.join(", ");
  return el("li", { class: "lora" }, select, remove, range, number,
    words ? el("p", { class: "hint" }, t("lora_words", { words })) : null);
}
