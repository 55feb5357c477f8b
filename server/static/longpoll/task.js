// @ts-check
/** A task as the API describes it. */

/**
 * @typedef {"pending"|"processing"|"completed"|"failed"|"canceled"} TaskStatus
 *
 * @typedef {object} Task
 * @property {string} taskId
 * @property {string} type
 * @property {TaskStatus} status
 * @property {number} version
 * @property {string|null} result
 * @property {string|null} error
 * @property {number|null} progress between 0 and 1, null while unknown
 * @property {string|null} stage
 * @property {string|null} message
 * @property {number|null} queuePosition
 * @property {number|null} etaSeconds
 * @property {number} attempt
 * @property {boolean} cancelRequested
 * @property {string} createdAt
 * @property {string|null} startedAt
 * @property {string} updatedAt
 * @property {string|null} finishedAt
 * @property {string} [prompt]
 */

const TERMINAL = new Set(["completed", "failed", "canceled"]);

/**
 * Whether a task has reached its final state.
 * @param {Pick<Task, "status">} task
 */
export function isFinished(task) {
  return TERMINAL.has(task.status);
}

/**
 * Return the place in the queue that a poll names as the last one seen: 0 if a waiting task has none, undefined if it doesn't wait.
 * @param {{status?: TaskStatus, queuePosition?: number|null}} task
 */
export function placeOf({ status, queuePosition }) {
  return status === "pending" ? (queuePosition ?? 0) : undefined;
}
