/** The events of one job, as the server sends them (SSE); the browser resumes by itself. */

import { parse } from "./json.js";

const TYPES = [
  "job", "queued", "started", "step", "preview", "image", "note", "completed", "failed", "cancelled",
];
const LAST = new Set(["completed", "failed", "cancelled"]);

/**
 * Follow a job until it ends.
 * @param {string} id
 * @param {{event: (data: any) => void, lost: () => void, closed: () => void}} on
 *   `lost`: the connection broke, the browser tries again; `closed`: the stream is over.
 * @returns {() => void} stops following
 */
export function follow(id, on) {
  const source = new EventSource(`/v1/jobs/${encodeURIComponent(id)}/events?previews=true`);
  for (const type of TYPES) {
    source.addEventListener(type, (event) => {
      on.event(parse(/** @type {MessageEvent} */ (event).data));
      if (!LAST.has(type)) return;
      source.close();
      on.closed();
    });
  }
  source.onerror = () => {
    on.lost();
    if (source.readyState === EventSource.CLOSED) on.closed();
  };
  return () => source.close();
}
