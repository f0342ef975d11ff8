/** The pictures that go in: chosen, dropped or pasted, made to what the server reads. */

import { $, button, el } from "./dom.js";
import { language, t } from "./i18n.js";
import { editMask } from "./mask.js";
import { problem } from "./notices.js";
import { change, inputs, setInput } from "./settings.js";
import { nearest } from "./shapes.js";

const READ = ["image/png", "image/jpeg", "image/webp"];
const LARGEST_SIDE = 2048;
/** @type {Map<Blob, string>} */
const urls = new Map();

/**
 * An URL of a blob, the same each time.
 * @param {Blob} blob
 */
function urlOf(blob) {
  let url = urls.get(blob);
  if (!url) urls.set(blob, (url = URL.createObjectURL(blob)));
  return url;
}

/**
 * A picture as the server reads it; pictures of other formats and very large ones become a PNG.
 * @param {Blob} file
 * @returns {Promise<{blob: Blob, width: number, height: number}>}
 */
export async function readable(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  if (scale === 1 && READ.includes(file.type)) return { blob: file, width, height };
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0, width, height);
  return { blob: await canvas.convertToBlob({ type: "image/png" }), width, height };
}

/**
 * @param {"image" | "control_image"} name
 * @param {Blob} file
 * @param {any} capabilities
 */
export async function takePicture(name, file, capabilities) {
  try {
    const { blob, width, height } = await readable(file);
    setInput(name, blob);
    const [w, h] = nearest(capabilities.sizes, width / height);
    change({ width: String(w), height: String(h) });
    $(name === "image" ? "start-fold" : "control-fold").open = true;
    $("settings").open = true; // on a phone all of it is folded
    problem($("problem"), null);
  } catch {
    problem($("problem"), t("error_decode"));
  }
}

/** @param {any} capabilities */
export function startPicturesIn(capabilities) {
  $("control-fold").hidden = !capabilities.modes.includes("control");
  const draw = () => {
    const { image, mask, control_image } = inputs.value;
    drawPlace($("start-drop"), "image", image, mask, capabilities);
    drawPlace($("control-drop"), "control_image", control_image, null, capabilities);
    $("strength-row").hidden = !image;
    $("control-row").hidden = !control_image;
    if (image) $("start-fold").open = true;
    if (control_image) $("control-fold").open = true;
  };
  inputs.watch(draw);
  language.watch(draw);
}

/**
 * @param {HTMLElement} place
 * @param {"image" | "control_image"} name
 * @param {Blob | null} blob
 * @param {Blob | null} mask
 * @param {any} capabilities
 */
function drawPlace(place, name, blob, mask, capabilities) {
  const file = el("input", { type: "file", accept: "image/*", class: "unseen", tabindex: "-1", "aria-hidden": "true" });
  file.onchange = () => file.files[0] && takePicture(name, file.files[0], capabilities);
  const choose = button({
    icon: "image", text: t("add_picture"), class: "quiet strong", onclick: () => file.click(),
  });
  if (!blob) {
    place.replaceChildren(file, choose, el("span", { class: "hint" }, t("drop_or")));
    return;
  }
  const shown = el("div", { class: "given" }, el("img", { src: urlOf(blob), alt: "" }));
  if (mask) shown.append(el("img", { src: urlOf(mask), alt: "", class: "over" }));
  const masks = name === "image" && capabilities.modes.includes("mask");
  const tools = el(
    "div",
    { class: "given-tools" },
    masks && button({
      icon: "brush", text: t(mask ? "mask_edit_again" : "mask_edit"), class: "quiet strong",
      onclick: async () => {
        const painted = await editMask(blob, mask);
        if (painted !== undefined) setInput("mask", painted);
      },
    }),
    mask && button({ text: t("mask_remove"), onclick: () => setInput("mask", null) }),
    button({ text: t("remove_picture"), onclick: () => setInput(name, null) }),
  );
  place.replaceChildren(file, shown, tools);
}
