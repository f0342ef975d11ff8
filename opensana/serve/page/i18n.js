/** The page's words in the user's language. */

import { Cell } from "./cell.js";
import en from "./en.js";
import zh from "./zh.js";

const WORDS = { en, zh };
const KEY = "opensana.language";

/** @type {Cell<"en" | "zh">} */
export const language = new Cell(first());

function first() {
  const kept = localStorage.getItem(KEY);
  if (kept === "en" || kept === "zh") return kept;
  const liked = navigator.languages.find((code) => /^(en|zh)\b/.test(code)) ?? "en";
  return liked.startsWith("zh") ? "zh" : "en";
}

/** The other language; it is kept for the next visit. */
export function switchLanguage() {
  const next = language.value === "en" ? "zh" : "en";
  localStorage.setItem(KEY, next);
  language.value = next;
}

/**
 * The words of a key, with `{name}` filled in; `{n|one|many}` chooses by a number.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  const words = WORDS[language.value][key];
  if (words === undefined) throw new Error(`no words for ${key}`);
  return words.replace(/\{(\w+)(?:\|([^|}]*)\|([^}]*))?\}/g, (_, name, one, many) => {
    if (one === undefined) return String(values[name]);
    return Number(values[name]) === 1 ? one : many;
  });
}

/**
 * Fill in all that the HTML marks with data-t, data-t-label and data-t-placeholder.
 * @param {ParentNode} root
 */
export function translate(root = document) {
  document.documentElement.lang = language.value === "zh" ? "zh-CN" : "en";
  for (const found of root.querySelectorAll("[data-t]")) {
    found.textContent = t(found.getAttribute("data-t") ?? "");
  }
  for (const found of root.querySelectorAll("[data-t-label]")) {
    const words = t(found.getAttribute("data-t-label") ?? "");
    found.setAttribute("aria-label", words);
    if (found.matches("button")) found.setAttribute("title", words);
  }
  for (const found of root.querySelectorAll("[data-t-placeholder]")) {
    found.setAttribute("placeholder", t(found.getAttribute("data-t-placeholder") ?? ""));
  }
}

/**
 * Seconds for people: 0.8 s, 12 s, 3 min.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds < 10) return t("seconds", { s: Math.max(seconds, 0.1).toFixed(1) });
  if (seconds < 100) return t("seconds", { s: Math.round(seconds) });
  return t("minutes", { m: Math.round(seconds / 60) });
}
