/** Cell: a value whose watchers hear of every change. The page's only kind of state. */

/** @template T */
export class Cell {
  #value;
  /** @type {Set<(value: T) => void>} */
  #watchers = new Set();

  /** @param {T} value */
  constructor(value) {
    this.#value = value;
  }

  get value() {
    return this.#value;
  }

  set value(next) {
    this.#value = next;
    for (const watcher of this.#watchers) watcher(next);
  }

  /** Tell the watchers that something inside the value changed. */
  touch() {
    this.value = this.#value;
  }

  /**
   * Call `watcher` now and after each change.
   * @param {(value: T) => void} watcher
   */
  watch(watcher) {
    this.#watchers.add(watcher);
    watcher(this.#value);
  }
}

/**
 * `draw` at most once a frame, however often the returned function is called; also in a hidden tab.
 * @param {() => void} draw
 */
export function framed(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    const go = () => {
      waiting = false;
      draw();
    };
    if (document.hidden) setTimeout(go, 250);
    else requestAnimationFrame(go);
  };
}
