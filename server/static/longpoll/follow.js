// @ts-check
/**
 * Follow one task by HTTP long polling.
 *
 *     const task = await follow(taskId, { version, onUpdate: (task) => show(task), signal });
 *
 * Scripts of other pages import it from `/static/longpoll.js`.
 */

import { requestJson } from "./http.js";
import { listenToPage } from "./page.js";
import { PollError } from "./poll_error.js";
import { PollLoop } from "./poll_loop.js";
import { randomId } from "./random_id.js";

/** @import { PollInfo } from "./followed_tasks.js" */
/** @import { Fetch } from "./http.js" */
/** @import { PollOptions } from "./poll_loop.js" */
/** @import { Task } from "./task.js" */
/**
 * @typedef {{data: Task, poll: PollInfo}} StatusReply
 *
 * @typedef {object} StatusOptions
 * @property {string} clientId random for each page
 * @property {number | undefined} [version] the version last seen
 * @property {number | undefined} [place] the place in the queue last seen, 0 if there was none; without it, moves aren't told
 * @property {number | undefined} [wait] seconds; without it the server holds for as long as it may
 * @property {AbortSignal} [signal]
 * @property {Fetch | undefined} [fetch]
 *
 * @typedef {object} TaskOptions
 * @property {number} [version] the version last seen
 * @property {(task: Task) => void} [onUpdate]
 * @property {string} [clientId] random for each page
 * @property {Fetch} [fetch]
 */

/**
 * Request a task's status once.
 * @param {string} taskId
 * @param {StatusOptions} options
 * @returns {Promise<StatusReply>}
 */
export async function askStatus(taskId, { version, place, wait, clientId, signal, fetch }) {
  const query = new URLSearchParams({ taskId, c: clientId });
  if (version !== undefined) query.set("version", String(version));
  if (place !== undefined) query.set("place", String(place));
  if (wait !== undefined) query.set("wait", String(wait));
  const reply = /** @type {Partial<StatusReply>|null} */ (
    await requestJson(`/api/generate/status?${query}`, { signal: signal ?? null, fetch })
  );
  if (typeof reply?.data?.version !== "number") {
    throw new PollError("bad_reply", 200, "The reply was not a task");
  }
  return { data: reply.data, poll: reply.poll ?? {} };
}

/**
 * Follow one task until it ends. Calls `onUpdate` for each newer version, and when its place in the queue has changed.
 * @param {string} taskId
 * @param {TaskOptions & PollOptions} [options]
 * @returns {Promise<Task>} the final state
 * @throws {PollError} not signed in, not found, deleted, or nothing changed for too long
 */
export async function follow(taskId, options = {}) {
  const { version, onUpdate = () => undefined, clientId = randomId(), fetch, ...pollOptions } = options;
  const loop = new PollLoop(async ({ tasks, immediate, signal }) => {
    const wait = immediate ? 0 : undefined;
    const { version: seen, place } = tasks[0] ?? {};
    const { data, poll } = await askStatus(taskId, { version: seen, place, wait, clientId, signal, fetch });
    return { tasks: [data], notFound: [], isLast: poll.next === "stop", poll };
  }, pollOptions);
  /** @type {Promise<Task>} */
  const ended = new Promise((onEnd, onError) => {
    loop.add({ taskId, version }, { onUpdate, onEnd, onError });
  });
  const stopListening = listenToPage(loop);
  try {
    return await Promise.race([ended, loop.run().then(() => ended)]);
  } finally {
    stopListening();
  }
}
