/** Elements: found by id, made from plain values. Text is always text, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * The element with an id.
 * @param {string} id
 * @returns {any}
 */
export function $(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element ${id}`);
  return found;
}

/**
 * An element: attributes, `on...` listeners, `class`; false and null are left out.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | false)} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== false));
  return made;
}

/**
 * One of the symbols at the top of the page.
 * @param {string} name
 */
export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  made.append(use);
  return made;
}

/**
 * A button with an icon and a word; `label` alone makes a square one.
 * @param {{icon?: string, text?: string, label?: string, class?: string, onclick: (event: Event) => void}} of
 */
export function button(of) {
  const attributes = {
    type: "button",
    class: of.class ?? (of.text ? "quiet" : "quiet square"),
    "aria-label": of.label,
    title: of.label,
    onclick: of.onclick,
  };
  return el("button", attributes, of.icon ? icon(of.icon) : null, of.text ? el("span", {}, of.text) : null);
}
