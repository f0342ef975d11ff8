/** The text chunks of a PNG (PNG specification, 11.3.4), read without trust in its lengths. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const LARGEST_FILE = 256 * 2 ** 20;
const LARGEST_TEXT = 2 ** 20;
const MOST_CHUNKS = 100_000;

/**
 * The texts by their keywords; an empty object where the file is no PNG or has none.
 * @param {Blob} file
 * @returns {Promise<Record<string, string>>}
 */
export async function readTexts(file) {
  /** @type {Record<string, string>} */
  const texts = Object.create(null);
  if (file.size > LARGEST_FILE) return texts;
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (SIGNATURE.some((byte, index) => bytes[index] !== byte)) return texts;
  const view = new DataView(bytes.buffer);
  let at = SIGNATURE.length;
  for (let count = 0; count < MOST_CHUNKS && at + 12 <= bytes.length; count++) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (at + 12 + length > bytes.length || type === "IEND") break;
    if (length <= LARGEST_TEXT) {
      const found = await decode(type, bytes.subarray(at + 8, at + 8 + length));
      if (found && !(found[0] in texts)) texts[found[0]] = found[1];
    }
    at += 12 + length;
  }
  return texts;
}

/**
 * Keyword and text of a chunk; null if it has none or is damaged.
 * @param {string} type
 * @param {Uint8Array} data
 * @returns {Promise<[string, string] | null>}
 */
async function decode(type, data) {
  if (!["tEXt", "zTXt", "iTXt"].includes(type)) return null;
  const [keyword, rest] = split(data);
  const name = latin1(keyword);
  if (!rest || !/^[\x20-\x7e]{1,79}$/.test(name)) return null;
  try {
    if (type === "tEXt") return [name, latin1(rest)];
    if (type === "zTXt") return [name, latin1(await inflate(rest.subarray(1)))];
    const [, afterLanguage] = split(rest.subarray(2));
    const [, text] = split(afterLanguage ?? new Uint8Array());
    if (!text) return null;
    const plain = rest[0] === 1 ? await inflate(text) : text;
    return [name, new TextDecoder("utf-8", { fatal: true }).decode(plain)];
  } catch {
    return null;
  }
}

/**
 * What is before the first zero byte, and what is behind it.
 * @param {Uint8Array} data
 * @returns {[Uint8Array, Uint8Array | null]}
 */
function split(data) {
  const at = data.indexOf(0);
  return at < 0 ? [data, null] : [data.subarray(0, at), data.subarray(at + 1)];
}

/** @param {Uint8Array} data */
const latin1 = (data) => {
  let text = "";
  for (let at = 0; at < data.length; at += 4096) {
    text += String.fromCharCode(...data.subarray(at, at + 4096));
  }
  return text;
};

/**
 * The plain bytes, as long as they are no more than a text should be.
 * @param {Uint8Array} data
 */
async function inflate(data) {
  const source = new Blob([/** @type {any} */ (data)]).stream();
  const reader = source.pipeThrough(new DecompressionStream("deflate")).getReader();
  /** @type {Uint8Array[]} */
  const parts = [];
  let size = 0;
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    size += next.value.length;
    if (size > LARGEST_TEXT) throw new Error("too large");
    parts.push(next.value);
  }
  return new Uint8Array(await new Blob(/** @type {any} */ (parts)).arrayBuffer());
}
