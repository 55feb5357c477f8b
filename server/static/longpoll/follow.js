// @ts-check
/**
 * Follow one task by HTTP long polling.
 *
 *     const task = await follow(taskId, { version, onUpdate: (data) => show(data), signal });
 *
 * For pages and scripts of other sites, too: it needs only `api.js` and `poll_loop.js`.
 */

import { randomId, requestJson } from "./api.js";
import { listenToPage, PollError, Pursuit } from "./poll_loop.js";

export { backoff, isFinished, PollError, sleep } from "./poll_loop.js";

/** @typedef {import("./api.js").Task} Task */
/** @typedef {import("./api.js").Fetch} Fetch */
/** @typedef {import("./poll_loop.js").State} State */
/** @typedef {{data: Task, poll: import("./poll_loop.js").Poll}} Reply */
/**
 * @typedef {object} Following
 * @property {number} [version] the version already shown
 * @property {(data: Task) => void} [onUpdate]
 * @property {string} [clientId] random for each page
 * @property {Fetch} [fetch]
 *
 * @typedef {Following & import("./poll_loop.js").Options} Options
 */

/**
 * Ask for a task's status once.
 * @param {string} taskId
 * @param {{version?: number, wait?: number, clientId: string, signal?: AbortSignal, fetch?: Fetch}} options
 * @returns {Promise<Reply>}
 */
export async function askStatus(taskId, { version, wait, clientId, signal, fetch }) {
  const query = new URLSearchParams({ taskId, c: clientId });
  if (version !== undefined) query.set("version", String(version));
  if (wait !== undefined) query.set("wait", String(wait));
  const reply = await requestJson(`/api/generate/status?${query}`, { signal, fetch });
  if (typeof reply?.data?.version !== "number") {
    throw new PollError("bad_reply", 200, "The reply was not a task");
  }
  return { data: reply.data, poll: reply.poll ?? {} };
}

/**
 * Follow one task until it ends. Calls `onUpdate` for each newer version.
 * @param {string} taskId
 * @param {Options} [options]
 * @returns {Promise<Task>} the final state
 * @throws {PollError} not signed in, not found, deleted, or nothing changed for too long
 */
export async function follow(taskId, options = {}) {
  const { version, onUpdate = () => {}, clientId = randomId(), fetch, ...rest } = options;
  const pursuit = new Pursuit(async ({ entries: [entry], instant, signal }) => {
    const wait = instant ? 0 : undefined;
    const { data, poll } = await askStatus(taskId, { version: entry.version, wait, clientId, signal, fetch });
    return { items: [data], notFound: [], last: poll.next === "stop", poll };
  }, rest);
  const ended = new Promise((onEnd, onError) => pursuit.add({ taskId, version }, { onUpdate, onEnd, onError }));
  const stopListening = listenToPage(pursuit);
  try {
    return await Promise.race([ended, pursuit.run().then(() => ended)]);
  } finally {
    stopListening();
  }
}
