/**
 * What this browser keeps: jobs and their PNGs in IndexedDB, so that the history outlives the
 * server's memory, and the pictures to start from. Where a browser keeps nothing (a private
 * window), the page works without.
 */

const NAME = "opensana";
const MOST_PICTURES = 400;
/** @type {Promise<IDBDatabase | null> | null} */
let opening = null;

function open() {
  opening ??= new Promise((resolve) => {
    let asked;
    try {
      asked = indexedDB.open(NAME, 1);
    } catch {
      resolve(null);
      return;
    }
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore("jobs", { keyPath: "id" });
      asked.result.createObjectStore("pictures");
      asked.result.createObjectStore("inputs");
    };
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => resolve(null);
    asked.onblocked = () => resolve(null);
  });
  return opening;
}

/**
 * @template T
 * @param {"jobs" | "pictures" | "inputs"} name
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} work
 * @returns {Promise<T | undefined>}
 */
async function within(name, mode, work) {
  const database = await open();
  if (!database) return undefined;
  return new Promise((resolve) => {
    try {
      const asked = work(database.transaction(name, mode).objectStore(name));
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => resolve(undefined);
    } catch {
      resolve(undefined);
    }
  });
}

/** @param {{id: string}} job */
export const keepJob = (job) => within("jobs", "readwrite", (store) => store.put(job));

/** @returns {Promise<any[]>} */
export const keptJobs = async () => (await within("jobs", "readonly", (store) => store.getAll())) ?? [];

/**
 * @param {string} key
 * @param {Blob} png
 */
export const keepPicture = (key, png) =>
  within("pictures", "readwrite", (store) => store.put(png, key));

/**
 * @param {string} key
 * @returns {Promise<Blob | undefined>}
 */
export const keptPicture = (key) => within("pictures", "readonly", (store) => store.get(key));

/** @returns {Promise<Set<string>>} */
export const keptPictureKeys = async () =>
  new Set(/** @type {string[]} */ (await within("pictures", "readonly", (store) => store.getAllKeys())) ?? []);

/** @param {{id: string, images: unknown[]}} job */
export async function forget(job) {
  await within("jobs", "readwrite", (store) => store.delete(job.id));
  for (const index of job.images.keys()) {
    await within("pictures", "readwrite", (store) => store.delete(`${job.id}/${index}`));
  }
}

/**
 * Forget the oldest jobs beyond what a browser should be asked to hold.
 * @param {any[]} jobs newest first
 */
export async function prune(jobs) {
  let pictures = 0;
  for (const job of jobs) {
    pictures += job.images.length;
    if (pictures > MOST_PICTURES) await forget(job);
  }
}

/**
 * @param {string} name
 * @param {Blob | null} blob
 */
export const keepInput = (name, blob) =>
  within("inputs", "readwrite", (store) => (blob ? store.put(blob, name) : store.delete(name)));

/** The last grid, with its pictures. @param {any} grid */
export const keepGrid = (grid) => within("inputs", "readwrite", (store) => store.put(grid, "grid"));

/** @returns {Promise<any>} */
export const keptGrid = () => within("inputs", "readonly", (store) => store.get("grid"));

/**
 * @param {string} name
 * @returns {Promise<Blob | undefined>}
 */
export const keptInput = (name) => within("inputs", "readonly", (store) => store.get(name));
