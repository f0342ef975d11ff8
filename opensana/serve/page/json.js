/** JSON with seeds up to 2^63 - 1, which a JavaScript number cannot hold: they are text here. */

/**
 * @param {string} text
 * @returns {any}
 */
export function parse(text) {
  // A quote inside a JSON string has a backslash before it, so this finds keys only.
  return JSON.parse(text.replace(/("seed"\s*:\s*)(-?\d+)/g, '$1"$2"'));
}

/**
 * A request's JSON; its `seed`, text of digits, becomes a number.
 * @param {Record<string, any>} request
 * @param {number} [indent]
 */
export function stringify(request, indent) {
  const text = JSON.stringify(request, null, indent);
  return text.replace(/("seed":\s?)"(\d+)"/g, "$1$2");
}
