/** The mask: painted over the picture, white where it shall be drawn anew. */

import { $ } from "./dom.js";

const MOST_UNDO = 40;
const KEY_STEP = 0.02;

/**
 * @param {Blob} picture
 * @param {Blob | null} before
 * @returns {Promise<Blob | null | undefined>} null: nothing is painted; undefined: closed
 */
export async function editMask(picture, before) {
  const dialog = $("mask-dialog");
  const paper = await Paper.of(picture, before);
  dialog.showModal();
  paper.fit();
  $("mask-canvas").focus();
  return new Promise((resolve) => {
    /** @type {Blob | null | undefined} */
    let result;
    $("mask-done").onclick = async () => {
      result = await paper.mask();
      dialog.close();
    };
    $("mask-close").onclick = () => dialog.close();
    dialog.onclose = () => {
      paper.end();
      resolve(result);
    };
  });
}

class Paper {
  /** @type {ImageData[]} */
  #past = [];
  #erasing = false;
  /** The tip in pixels of the picture. */
  #at = { x: 0, y: 0 };
  #down = false;
  #listening = new AbortController();

  /**
   * @param {Blob} picture
   * @param {Blob | null} before
   */
  static async of(picture, before) {
    const bitmap = await createImageBitmap(picture);
    const paper = new Paper(bitmap);
    if (before) paper.#load(await createImageBitmap(before));
    return paper;
  }

  /** @param {ImageBitmap} bitmap */
  constructor(bitmap) {
    this.canvas = /** @type {HTMLCanvasElement} */ ($("mask-canvas"));
    for (const canvas of [$("mask-picture"), this.canvas]) {
      Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
    }
    $("mask-picture").getContext("2d").drawImage(bitmap, 0, 0);
    this.pen = /** @type {CanvasRenderingContext2D} */ (
      this.canvas.getContext("2d", { willReadFrequently: true })
    );
    Object.assign(this.pen, { lineCap: "round", lineJoin: "round", strokeStyle: "#fff", fillStyle: "#fff" });
    this.#at = { x: bitmap.width / 2, y: bitmap.height / 2 };
    $("mask-size").max = Math.max(16, Math.round(Math.max(bitmap.width, bitmap.height) / 2));
    $("mask-size").value = Math.round(Math.max(bitmap.width, bitmap.height) / 8);
    this.#listen();
    this.#choose(false);
  }

  get size() {
    return Number($("mask-size").value);
  }

  /** As large as the dialog has room, and the picture never smaller than it is. */
  fit() {
    const room = $("paper").parentElement.getBoundingClientRect();
    const scale = Math.min(room.width / this.canvas.width, room.height / this.canvas.height);
    $("paper").style.width = `${Math.floor(this.canvas.width * scale)}px`;
    $("paper").style.height = `${Math.floor(this.canvas.height * scale)}px`;
    this.#showTip();
  }

  #listen() {
    const { signal } = this.#listening;
    const on = (/** @type {EventTarget} */ target, /** @type {string} */ type, /** @type {any} */ listener) =>
      target.addEventListener(type, listener, { signal });
    on(this.canvas, "pointerdown", (/** @type {PointerEvent} */ event) => this.#begin(event));
    on(this.canvas, "pointermove", (/** @type {PointerEvent} */ event) => this.#move(event));
    for (const type of ["pointerup", "pointercancel"]) on(this.canvas, type, () => (this.#down = false));
    on($("mask-dialog"), "keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    on(window, "resize", () => this.fit());
    on($("mask-size"), "input", () => this.#showTip());
    on($("mask-paint"), "click", () => this.#choose(false));
    on($("mask-erase"), "click", () => this.#choose(true));
    on($("mask-undo"), "click", () => this.#undo());
    on($("mask-clear"), "click", () => this.#whole((data) => data.fill(0)));
    on($("mask-invert"), "click", () =>
      this.#whole((data) => {
        for (let at = 0; at < data.length; at += 4) data.fill(data[at + 3] > 127 ? 0 : 255, at, at + 4);
      }),
    );
  }

  end() {
    this.#listening.abort();
  }

  /** @param {ImageBitmap} mask black and white */
  #load(mask) {
    this.pen.drawImage(mask, 0, 0, this.canvas.width, this.canvas.height);
    const image = this.#now();
    for (let at = 0; at < image.data.length; at += 4) {
      image.data.fill(image.data[at] > 127 ? 255 : 0, at, at + 4);
    }
    this.pen.putImageData(image, 0, 0);
  }

  /** The mask as the server reads it: white on black, as large as the picture. */
  async mask() {
    const image = this.#now();
    let painted = false;
    for (let at = 0; at < image.data.length; at += 4) {
      const on = image.data[at + 3] > 127;
      painted ||= on;
      image.data.fill(on ? 255 : 0, at, at + 3);
      image.data[at + 3] = 255;
    }
    if (!painted) return null;
    const canvas = new OffscreenCanvas(image.width, image.height);
    canvas.getContext("2d")?.putImageData(image, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }

  #now() {
    return this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }

  #remember() {
    this.#past.push(this.#now());
    if (this.#past.length > MOST_UNDO) this.#past.shift();
    $("mask-undo").disabled = false;
  }

  #undo() {
    const before = this.#past.pop();
    if (before) this.pen.putImageData(before, 0, 0);
    $("mask-undo").disabled = this.#past.length === 0;
  }

  /** @param {(data: Uint8ClampedArray) => void} change */
  #whole(change) {
    this.#remember();
    const image = this.#now();
    change(image.data);
    this.pen.putImageData(image, 0, 0);
  }

  /** @param {boolean} erasing */
  #choose(erasing) {
    this.#erasing = erasing;
    $("mask-paint").setAttribute("aria-pressed", String(!erasing));
    $("mask-erase").setAttribute("aria-pressed", String(erasing));
    $("mask-undo").disabled = this.#past.length === 0;
  }

  /** @param {PointerEvent} event */
  #begin(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.#down = true;
    this.#remember();
    this.#at = this.#place(event);
    this.#line(this.#at, this.#at);
    this.#showTip();
  }

  /** @param {PointerEvent} event */
  #move(event) {
    for (const one of event.getCoalescedEvents?.() ?? [event]) {
      const next = this.#place(one);
      if (this.#down) this.#line(this.#at, next);
      this.#at = next;
    }
    this.#showTip();
  }

  /** @param {PointerEvent} event */
  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  /**
   * @param {{x: number, y: number}} from
   * @param {{x: number, y: number}} to
   */
  #line(from, to) {
    this.pen.globalCompositeOperation = this.#erasing ? "destination-out" : "source-over";
    this.pen.lineWidth = this.size;
    this.pen.beginPath();
    this.pen.moveTo(from.x, from.y);
    this.pen.lineTo(to.x + 0.01, to.y);
    this.pen.stroke();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      this.#undo();
      return;
    }
    if (event.key === "[" || event.key === "]") {
      $("mask-size").value = this.size * (event.key === "[" ? 0.8 : 1.25);
      this.#showTip();
    } else if (event.key === "e" || event.key === "E") this.#choose(!this.#erasing);
    else if (event.target === this.canvas) this.#walk(event);
  }

  /** @param {KeyboardEvent} event */
  #walk(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[/** @type {keyof steps} */ (event.key)];
    if (event.key === " ") {
      this.#remember();
      this.#line(this.#at, this.#at);
    } else if (step) {
      const far = KEY_STEP * this.canvas.width * (event.shiftKey ? 4 : 1);
      this.#at = {
        x: Math.min(this.canvas.width, Math.max(0, this.#at.x + far * step[0])),
        y: Math.min(this.canvas.height, Math.max(0, this.#at.y + far * step[1])),
      };
      this.#showTip();
    } else return;
    event.preventDefault();
  }

  #showTip() {
    const { style } = $("mask-tip");
    const scale = this.canvas.clientWidth / this.canvas.width;
    style.width = style.height = `${this.size * scale}px`;
    style.left = `${this.#at.x * scale}px`;
    style.top = `${this.#at.y * scale}px`;
  }
}
