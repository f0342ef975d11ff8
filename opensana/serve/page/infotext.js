/** The settings that A1111-style programs write: prompt, negative prompt, one line of `key: value`. */

const FIELD = /\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)/g;
const LORA = /<lora:([^:<>]{1,200}):(-?[\d.]{1,10})(?::[^<>]*)?>/g;
/** Their samplers that are ours under another name. */
const SOLVERS = { "DPM++ 2M": "flow_dpm", Euler: "euler", LCM: "scm" };
const FEWEST_FIELDS = 3;
const LONGEST = 100_000;

/**
 * The request in such a text, and the LoRAs that it names; null if it is none.
 * @param {string} text
 * @returns {{request: Record<string, any>, loras: {name: string, scale: number}[], model: string} | null}
 */
export function readInfotext(text) {
  if (text.length > LONGEST) return null;
  const lines = text.trim().split("\n");
  const fields = fieldsOf(lines.at(-1) ?? "");
  if (fields.size < FEWEST_FIELDS) return null;
  lines.pop();
  const at = lines.findIndex((line) => line.startsWith("Negative prompt:"));
  const prompt = (at < 0 ? lines : lines.slice(0, at)).join("\n").trim();
  const negative = at < 0 ? "" : lines.slice(at).join("\n").slice("Negative prompt:".length).trim();
  const loras = [...prompt.matchAll(LORA)].map(([, name, scale]) => ({ name, scale: Number(scale) }));
  const [width, height] = (fields.get("Size") ?? "").split("x");
  return {
    request: {
      prompt: prompt.replace(LORA, "").replace(/ +/g, " ").trim(),
      negative_prompt: negative,
      steps: fields.get("Steps"),
      guidance: fields.get("CFG scale"),
      seed: fields.get("Seed"),
      width,
      height,
      strength: fields.get("Denoising strength"),
      solver: SOLVERS[/** @type {keyof typeof SOLVERS} */ (fields.get("Sampler"))],
    },
    loras,
    model: fields.get("Model") ?? "",
  };
}

/** @param {string} line */
function fieldsOf(line) {
  /** @type {Map<string, string>} */
  const fields = new Map();
  for (const [, name, value] of line.matchAll(FIELD)) {
    fields.set(name.trim(), value.startsWith('"') ? unquoted(value) : value.trim());
  }
  return fields;
}

/** @param {string} value */
function unquoted(value) {
  try {
    return String(JSON.parse(value));
  } catch {
    return value;
  }
}
