// @ts-check
/** What the tabs of one browser send each other: the types of the messages, and their validation. */

/** @import { State } from "./poll_loop.js" */
/** @import { Task } from "./task.js" */
/**
 * @typedef {{taskId: string, version: number, createdAt: string, place?: number | undefined}} ShownTask a task that a tab shows, with its
 * version, and its place in the queue if it has one
 * @typedef {{code: string, status: number, message: string}} Failure the content of a `PollError`
 *
 * Sent by every tab:
 * @typedef {{type: "tasks", tab: string, tasks: ShownTask[]}} TasksMessage all unfinished tasks that this tab shows
 * @typedef {{type: "wake"}} WakeMessage poll now
 * @typedef {{type: "ping"}} PingMessage the leader must reply with `pong`
 *
 * Sent by the leader:
 * @typedef {{type: "leading"}} LeadingMessage every tab must reply with `tasks`
 * @typedef {{type: "pong"}} PongMessage
 * @typedef {{type: "update", task: Task, reset: boolean}} UpdateMessage
 * @typedef {{type: "failure", taskId: string, error: Failure}} FailureMessage
 * @typedef {{type: "state", state: State}} StateMessage
 *
 * @typedef {UpdateMessage|FailureMessage|StateMessage} PollMessage what the leader's polls bring
 * @typedef {TasksMessage|WakeMessage|PingMessage|LeadingMessage|PongMessage|PollMessage} TabMessage
 */

/** @typedef {Record<string, unknown>} Fields */

/** @type {{[Type in TabMessage["type"]]: (message: Fields) => boolean}} */
const IS_VALID = {
  tasks: ({ tab, tasks }) => typeof tab === "string" && Array.isArray(tasks) && tasks.every(isShownTask),
  wake: () => true,
  ping: () => true,
  leading: () => true,
  pong: () => true,
  update: ({ task, reset }) => isTask(task) && typeof reset === "boolean",
  failure: ({ taskId, error }) => typeof taskId === "string" && isFailure(error),
  state: ({ state }) => isState(state),
};

/**
 * @param {unknown} value
 * @returns {value is Fields}
 */
function isObject(value) {
  return typeof value === "object" && value !== null;
}

/** @param {unknown} value */
function isShownTask(value) {
  return (
    isObject(value) &&
    typeof value.taskId === "string" &&
    typeof value.version === "number" &&
    typeof value.createdAt === "string" &&
    ["number", "undefined"].includes(typeof value.place)
  );
}

/** @param {unknown} value */
function isTask(value) {
  return (
    isObject(value) &&
    typeof value.taskId === "string" &&
    typeof value.version === "number" &&
    typeof value.status === "string"
  );
}

/** @param {unknown} value */
function isFailure(value) {
  return (
    isObject(value) &&
    typeof value.code === "string" &&
    typeof value.status === "number" &&
    typeof value.message === "string"
  );
}

/** @param {unknown} value */
function isState(value) {
  return isObject(value) && typeof value.name === "string" && typeof value.attempt === "number";
}

/**
 * Return the message, or null for one that this version of the page doesn't know: another tab may run another version.
 * @param {unknown} data
 * @returns {TabMessage|null}
 */
export function parseMessage(data) {
  if (!isObject(data) || typeof data.type !== "string" || !Object.hasOwn(IS_VALID, data.type)) return null;
  const message = /** @type {TabMessage} */ (data);
  return IS_VALID[message.type](data) ? message : null;
}

/**
 * The default branch of a switch over all types: type checking fails if a branch for one is missing.
 * @param {never} _message
 */
export function ignoreUnknown(_message) {
  // a message that `parseMessage` has let through has a branch
}
