/** The history: every finished picture, newest first; arrows walk, Enter restores, Delete deletes. */

import { framed } from "./cell.js";
import { $, el } from "./dom.js";
import { language, t } from "./i18n.js";
import { jobs, more, older, pictureKey, pictures, remove } from "./jobs.js";
import { confirmed, toast } from "./notices.js";
import { image } from "./picture.js";
import { show, shown } from "./stage.js";

/**
 * @param {{restore: (job: any, index: number) => void, refused: (error: unknown) => void}} on
 */
export function startHistory(on) {
  const list = $("history");
  const draw = framed(() => {
    const all = pictures();
    list.hidden = $("history-clear").hidden = all.length === 0;
    $("history-empty").hidden = all.length > 0;
    const known = new Map([...list.children].map((one) => [one.id, one]));
    const options = all.map(([job, index]) => known.get(optionId(job, index)) ?? option(job, index));
    if (options.length !== known.size || options.some((one, at) => list.children[at] !== one)) {
      list.replaceChildren(...options);
    }
    select(all);
  });
  for (const cell of [jobs, shown, language]) cell.watch(draw);
  older.watch((has) => ($("history-more").hidden = !has));
  $("history-more").onclick = () => more().catch(on.refused);
  list.addEventListener("click", (/** @type {MouseEvent} */ event) => {
    const found = /** @type {HTMLElement} */ (event.target).closest("[role=option]");
    const picked = pictures().find(([job, index]) => optionId(job, index) === found?.id);
    if (!picked) return;
    show(picked[0].id, picked[1]);
    on.restore(...picked);
  });
  list.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => walk(event, on));
  $("history-clear").onclick = () => clear(on.refused);
}

/**
 * @param {any} job
 * @param {number} index
 */
const optionId = (job, index) => `picture-${pictureKey(job, index)}`;

/**
 * @param {any} job
 * @param {number} index
 */
function option(job, index) {
  const { width, height, seed } = job.images[index];
  const name = `${job.request.prompt}, ${t("seed")} ${seed}`;
  const made = el("div", { role: "option", id: optionId(job, index), class: "thumb", "aria-label": name, title: name },
    image(job, index, { loading: "lazy", alt: "" }));
  made.style.aspectRatio = `${width} / ${height}`;
  return made;
}

/** @param {[any, number][]} all */
function at(all) {
  const now = shown.value;
  return all.findIndex(([job, index]) => job.id === now?.id && (now.index === null || now.index === index));
}

/** @param {[any, number][]} all */
function select(all) {
  const here = at(all);
  const list = $("history");
  for (const [index, one] of [...list.children].entries()) {
    one.setAttribute("aria-selected", String(index === here));
  }
  if (here < 0) list.removeAttribute("aria-activedescendant");
  else list.setAttribute("aria-activedescendant", list.children[here].id);
}

/**
 * @param {KeyboardEvent} event
 * @param {{restore: (job: any, index: number) => void, refused: (error: unknown) => void}} on
 */
function walk(event, on) {
  const all = pictures();
  const here = at(all);
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
  const ends = { Home: 0, End: all.length - 1 };
  const step = steps[/** @type {keyof steps} */ (event.key)];
  const end = ends[/** @type {keyof ends} */ (event.key)];
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (step !== undefined || end !== undefined) {
    const next = end ?? (here < 0 ? 0 : Math.min(all.length - 1, Math.max(0, here + step)));
    if (!all[next]) return;
    show(all[next][0].id, all[next][1]);
    $("history").children[next].scrollIntoView({ block: "nearest", inline: "nearest" });
  } else if ((event.key === "Enter" || event.key === " ") && here >= 0) on.restore(...all[here]);
  else if (event.key === "Delete" && here >= 0) discard(all[here][0], on.refused);
  else return;
  event.preventDefault();
}

function columns() {
  const all = [...$("history").children];
  const top = all[0]?.offsetTop;
  const second = all.findIndex((one) => one.offsetTop > top);
  return second > 0 ? second : 1;
}

/**
 * Delete a job with all its pictures, once the user said yes.
 * @param {any} job
 * @param {(error: unknown) => void} refused
 */
export async function discard(job, refused) {
  if (!(await confirmed(t("delete_question", { n: job.images.length })))) return;
  const all = pictures();
  const next = all.slice(at(all)).find(([other]) => other.id !== job.id) ?? all.find(([other]) => other.id !== job.id);
  try {
    await remove(job);
  } catch (error) {
    refused(error);
    return;
  }
  if (next) show(next[0].id, next[1]);
  toast([t("deleted")]);
}

/** @param {(error: unknown) => void} refused */
async function clear(refused) {
  const all = pictures();
  if (!(await confirmed(t("clear_all_question", { n: all.length })))) return;
  try {
    for (const job of new Set(all.map(([job]) => job))) await remove(job);
  } catch (error) {
    refused(error);
  }
}
