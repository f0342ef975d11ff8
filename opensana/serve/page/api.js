/** The server's native API, as functions. */

import { t } from "./i18n.js";
import { parse, stringify } from "./json.js";

const FULL = new Set(["queue_full", "queue_full_for_key", "rate_limited"]);

/** What the server refused, or that it did not answer (status 0). */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {{code?: string | null, param?: string | null, wait?: number}} [more]
   */
  constructor(status, message, more = {}) {
    super(message);
    this.status = status;
    this.code = more.code ?? null;
    this.param = more.param ?? null;
    /** Seconds after which to try again; 0 where the server named none. */
    this.wait = more.wait ?? 0;
  }

  /** Whether it is taken once others are done. */
  get full() {
    return FULL.has(this.code ?? "");
  }

  /** One line for the user: what is wrong and what to try. */
  get line() {
    if (this.status === 0) return t("error_network");
    return this.wait ? t("error_queue", { message: this.message, s: this.wait }) : this.message;
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 */
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, credentials: "same-origin", cache: "no-store" });
  } catch {
    throw new ApiError(0, "");
  }
  if (answer.ok) return answer;
  const wait = Number(answer.headers.get("retry-after")) || 0;
  let error;
  try {
    error = (await answer.json()).error;
  } catch {
    error = null;
  }
  const message = typeof error?.message === "string" ? error.message : `HTTP ${answer.status}`;
  throw new ApiError(answer.status, message, { code: error?.code, param: error?.param, wait });
}

/** @param {string} path */
const read = async (path) => parse(await (await ask(path)).text());

export const capabilities = () => read("/v1/capabilities");

/** @param {string} id */
export const job = (id) => read(`/v1/jobs/${encodeURIComponent(id)}`);

/**
 * One's own jobs, newest first.
 * @param {number} limit
 * @param {string} [before]
 */
export function jobs(limit, before) {
  const query = new URLSearchParams({ limit: String(limit), ...(before ? { before } : {}) });
  return read(`/v1/jobs?${query}`);
}

/** What makes a job one, however often it is sent. */
export const newKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * Begin a job. It is sent again once if no answer came.
 * @param {Record<string, any>} request
 * @param {Record<string, Blob>} files
 * @param {string} key
 */
export async function submit(request, files, key) {
  const send = async () => {
    const headers = { "idempotency-key": key };
    const text = stringify(request);
    if (Object.keys(files).length === 0) {
      const json = { ...headers, "content-type": "application/json" };
      return ask("/v1/jobs", { method: "POST", headers: json, body: text });
    }
    const form = new FormData();
    form.append("request", text);
    for (const [name, file] of Object.entries(files)) form.append(name, file, `${name}.png`);
    return ask("/v1/jobs", { method: "POST", headers, body: form });
  };
  const answer = await send().catch((error) => {
    if (error.status === 0) return send();
    throw error;
  });
  return parse(await answer.text());
}

/** @param {string} id */
export async function cancel(id) {
  const answer = await ask(`/v1/jobs/${encodeURIComponent(id)}/cancel`, { method: "POST" });
  return parse(await answer.text());
}

/**
 * Delete a finished job and its pictures; one that is gone already is fine.
 * @param {string} id
 */
export async function remove(id) {
  try {
    await ask(`/v1/jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404) throw error;
  }
}

/**
 * The bytes of a picture or of what a job started from.
 * @param {string} path
 */
export const file = async (path) => (await ask(path)).blob();
