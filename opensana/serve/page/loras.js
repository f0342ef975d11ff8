/** LoRAs: those that the server lists, each with its weight. */

import { $, button, el } from "./dom.js";
import { language, t } from "./i18n.js";
import { change, settings } from "./settings.js";

/** @param {any} capabilities */
export function startLoras({ loras }) {
  const names = loras.map((/** @type {any} */ one) => one.name);
  if (!names.length) change({ loras: [] });
  $("loras-fold").hidden = !names.length;
  $("lora-add").onclick = () => {
    const used = settings.value.loras.map((one) => one.name);
    const name = names.find((/** @type {string} */ one) => !used.includes(one)) ?? names[0];
    change({ loras: [...settings.value.loras, { name, scale: "1" }] });
  };
  let shown = "";
  const draw = () => {
    const rows = settings.value.loras;
    // A row under the user's hand is not made anew.
    const shape = JSON.stringify([language.value, rows.map((one) => one.name)]);
    if (shape !== shown) {
      $("loras").replaceChildren(...rows.map((one, index) => row(one, index, names)));
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
 * @param {string[]} names
 */
function row(one, index, names) {
  const change_one = (/** @type {any} */ changes) =>
    change({ loras: settings.value.loras.map((lora, at) => (at === index ? { ...lora, ...changes } : lora)) });
  const select = el(
    "select",
    { "aria-label": t("lora_name"), onchange: () => change_one({ name: select.value }) },
    ...names.map((name) => el("option", { value: name }, name)),
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
  return el("li", { class: "lora" }, select, remove, range, number);
}
