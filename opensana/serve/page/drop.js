/** Files that are dropped anywhere or pasted: their settings come back, or they become the start. */

import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { toast } from "./notices.js";
import { remember } from "./picture.js";
import { takePicture } from "./pictures_in.js";
import { readRecorded } from "./recorded.js";
import { change, setInput } from "./settings.js";

/** @param {any} capabilities */
export function startDrop(capabilities) {
  let depth = 0;
  const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    $("veil").hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    $("veil").hidden = depth === 0;
  });
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    depth = 0;
    $("veil").hidden = true;
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    event.preventDefault();
    const place = /** @type {HTMLElement} */ (event.target).closest?.("#start-drop, #control-drop");
    if (place) takePicture(place.id === "start-drop" ? "image" : "control_image", file, capabilities);
    else take(file, capabilities);
  });
  addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (!file) return;
    event.preventDefault();
    takePicture("image", file, capabilities);
  });
}

/**
 * @param {File} file
 * @param {any} capabilities
 */
async function take(file, capabilities) {
  const found = await readRecorded(file, capabilities);
  if (!found) {
    await takePicture("image", file, capabilities);
    if ($("problem").hidden) toast([t("error_png_nothing")]);
    return;
  }
  const back = remember();
  change(found.settings);
  setInput("image", null);
  setInput("control_image", null);
  toast([t(found.ours ? "restored" : "restored_a1111"), ...found.notes], back);
}
