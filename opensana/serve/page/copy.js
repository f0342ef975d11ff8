/** The request of a picture as a command line, as curl and as Python. */

import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { stringify } from "./json.js";
import { toast } from "./notices.js";

const FILES = { image: "start.png", mask: "mask.png", control_image: "control.png" };
const KINDS = { "copy-command": asCommand, "copy-curl": asCurl, "copy-python": asPython };

/** @typedef {{request: any, inputs: any, model: string, origin: string, auth: boolean}} Wanted */

/** A word of a POSIX shell. @param {string} text */
export const quoted = (text) =>
  /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

/** @param {any} inputs */
const filesOf = (inputs) => Object.entries(FILES).filter(([name]) => inputs[name]);

/** @param {Wanted} wanted */
export function asCommand({ request, inputs, model }) {
  const { prompt, lora, ...rest } = request;
  // After --, a prompt that begins with a dash is no flag.
  const dashed = prompt.startsWith("-");
  const flags = Object.entries(rest).flatMap(([name, value]) =>
    value === true ? [`--${name.replaceAll("_", "-")}`] : [`--${name.replaceAll("_", "-")} ${quoted(String(value))}`],
  );
  for (const [name, file] of filesOf(inputs)) flags.push(`--${name.replaceAll("_", "-")} ${file}`);
  for (const { name, scale = 1 } of lora ?? []) {
    flags.push(`--lora ${quoted(`${name}.safetensors`)} --lora-scale ${scale}`);
  }
  const before = dashed ? [] : [quoted(prompt)];
  const after = dashed ? [`-- ${quoted(prompt)}`] : [];
  return wrapped(["opensana generate", ...before, `-m ${quoted(model)}`, ...flags, ...after]);
}

/** @param {Wanted} wanted */
export function asCurl({ request, inputs, origin, auth }) {
  const files = filesOf(inputs);
  const body = stringify(request);
  const sent = files.length
    ? [`-F ${quoted(`request=${body}`)}`, ...files.map(([name, file]) => `-F ${name}=@${file}`)]
    : ["-H 'Content-Type: application/json'", `-d ${quoted(body)}`];
  const key = auth ? ['-H "Authorization: Bearer $OPENSANA_KEY"'] : [];
  return wrapped([`curl ${origin}/v1/jobs`, ...key, ...sent]);
}

/** @param {Wanted} wanted */
export function asPython({ request, inputs, model }) {
  const { prompt, lora, ...rest } = request;
  const load = [python(model)];
  if (lora) {
    load.push(`lora=${python(lora.map((/** @type {any} */ one) => `${one.name}.safetensors`))}`);
    load.push(`lora_scale=${python(lora.map((/** @type {any} */ one) => one.scale ?? 1))}`);
  }
  const keywords = Object.entries(rest).map(([name, value]) =>
    `${name}=${name === "seed" ? value : python(value)}`);
  for (const [name, file] of filesOf(inputs)) keywords.push(`${name}=${python(file)}`);
  const fields = [python(prompt), ...keywords].map((line) => `    ${line},\n`).join("");
  return [
    "from opensana import Sana",
    "",
    `sana = Sana.load(${load.join(", ")})`,
    `for picture in sana.draw(\n${fields}):`,
    '    picture.save(f"out_{picture.request.seed}.png")',
  ].join("\n");
}

/** A literal of Python: JSON is one, but for true and half a surrogate pair. @param {unknown} value */
function python(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  return JSON.stringify(value);
}

/** @param {string[]} parts */
const wrapped = (parts) => parts.join(" \\\n  ");

/** @type {Wanted | null} */
let wanted = null;

export function startCopy() {
  for (const id of Object.keys(KINDS)) {
    $(id).onclick = () => choose(id);
    $(id).addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const all = Object.keys(KINDS);
      const next = all[(all.indexOf(id) + step + all.length) % all.length];
      choose(next);
      $(next).focus();
    });
  }
  $("copy-close").onclick = () => $("copy-dialog").close();
  $("copy-now").onclick = copy;
}

/** @param {Wanted} what */
export function showCopies(what) {
  wanted = what;
  choose("copy-command");
  $("copy-dialog").showModal();
  $("copy-command").focus();
}

/** @param {string} kind */
function choose(kind) {
  if (!wanted) return;
  for (const id of Object.keys(KINDS)) {
    $(id).setAttribute("aria-selected", String(id === kind));
    $(id).tabIndex = id === kind ? 0 : -1;
  }
  $("copy-text").setAttribute("aria-labelledby", kind);
  $("copy-text").textContent = KINDS[/** @type {keyof KINDS} */ (kind)](wanted);
  const files = filesOf(wanted.inputs).length > 0 || (wanted.request.lora && kind !== "copy-curl");
  const key = wanted.auth && kind === "copy-curl";
  $("copy-note").textContent = [files && t("copy_note_files"), key && t("copy_note_key")].filter(Boolean).join(" ");
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("copy-text").textContent);
    toast([t("copied")]);
    $("copy-dialog").close();
  } catch {
    const range = document.createRange();
    range.selectNodeContents($("copy-text"));
    getSelection()?.removeAllRanges();
    getSelection()?.addRange(range);
    $("copy-note").textContent = t("copy_failed");
  }
}
