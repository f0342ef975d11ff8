/** What the page says: to the eye, to a screen reader, and the one question before deleting. */

import { $, button, el } from "./dom.js";
import { t } from "./i18n.js";

const TOAST_MS = 6000;

/** Say to a screen reader. @param {string} words */
export function announce(words) {
  $("live").textContent = "";
  requestAnimationFrame(() => ($("live").textContent = words));
}

/**
 * A short message at the edge; with a way back where there is one.
 * @param {string[]} lines
 * @param {() => void} [undo]
 */
export function toast(lines, undo) {
  const close = () => made.remove();
  const made = el(
    "div",
    { class: "toast" },
    el("div", {}, ...lines.map((line) => el("p", {}, line))),
    undo ? button({ text: t("undo"), onclick: () => (undo(), close()) }) : null,
    button({ icon: "close", label: t("close"), onclick: close }),
  );
  $("toasts").replaceChildren(made);
  setTimeout(close, lines.length > 1 ? 2 * TOAST_MS : TOAST_MS);
}

/**
 * One line about a refusal, at a place of its own; null clears it.
 * @param {HTMLElement} place
 * @param {string | null} line
 */
export function problem(place, line) {
  place.hidden = line === null;
  place.textContent = line ?? "";
}

/** @param {string} question @returns {Promise<boolean>} */
export function confirmed(question) {
  const dialog = $("ask-dialog");
  $("ask-text").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    $("ask-yes").onclick = () => dialog.close("yes");
    $("ask-no").onclick = () => dialog.close("");
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
  });
}
