// @ts-check
/** The tasks that a poll loop follows: the version, place and budget of each, and how a reply changes them. */

import { PollError } from "./poll_error.js";
import { isFinished, placeOf } from "./task.js";

/** @import { Task } from "./task.js" */
/**
 * @typedef {object} Watcher
 * @property {(task: Task, reset: boolean) => void} onUpdate `reset`: the version may be lower than the last one
 * @property {(task: Task) => void} onEnd the final state
 * @property {(error: PollError) => void} onError the task isn't followed any more, without a final state
 *
 * @typedef {object} FollowedTask
 * @property {string} taskId
 * @property {string} createdAt
 * @property {number|undefined} version the version last passed to the watcher
 * @property {number|undefined} place the place in the queue last passed to the watcher, 0 if there was none, undefined unless
 *   it waits
 * @property {number|null} quietSince time of the last change or wake, null before the first poll
 * @property {Watcher} watcher
 *
 * @typedef {object} PollInfo the member `poll` of a status reply
 * @property {string} [reason]
 * @property {boolean} [changed]
 * @property {number} [waitedMs]
 * @property {"again"|"stop"} [next]
 * @property {number|null} [retryAfterMs]
 *
 * @typedef {object} PollReply
 * @property {Task[]} tasks
 * @property {string[]} notFound
 * @property {boolean} isLast whether these states are final, whatever their status
 * @property {PollInfo} poll
 *
 * @typedef {object} FollowOptions
 * @property {number} maxPerRequest how many tasks one request can name
 * @property {number} budgetMs a task that hasn't changed for this long is given up
 * @property {() => number} now
 */

export class FollowedTasks {
  /** @param {FollowOptions} options */
  constructor({ maxPerRequest, budgetMs, now }) {
    this.maxPerRequest = maxPerRequest;
    this.budgetMs = budgetMs;
    this.now = now;
    /** @type {Map<string, FollowedTask>} */
    this.byId = new Map();
  }

  get size() {
    return this.byId.size;
  }

  /**
   * @param {{taskId: string, version?: number | undefined, createdAt?: string, place?: number | undefined}} task
   * @param {Watcher} watcher
   */
  add({ taskId, version, createdAt = "", place }, watcher) {
    this.byId.set(taskId, { taskId, version, place, createdAt, watcher, quietSince: null });
  }

  /**
   * Return the tasks for the next request: the newest ones. Older tasks follow when these have finished.
   * @returns {FollowedTask[]}
   */
  selectForRequest() {
    const newestFirst = [...this.byId.values()].sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
    const selected = newestFirst.slice(0, this.maxPerRequest);
    for (const followed of selected) followed.quietSince ??= this.now();
    return selected;
  }

  // Budgets ---------------------------------------------------------------------------------------

  /** @param {FollowedTask} followed */
  budgetLeft({ quietSince }) {
    return this.budgetMs - (this.now() - (quietSince ?? this.now()));
  }

  /** Milliseconds until the first budget expires. */
  shortestBudget() {
    return Math.max(0, Math.min(...[...this.byId.values()].map((followed) => this.budgetLeft(followed))));
  }

  /** Give every task its whole budget again. */
  renewBudgets() {
    for (const followed of this.byId.values()) if (followed.quietSince !== null) followed.quietSince = this.now();
  }

  /** Return the tasks whose budget has expired. */
  expired() {
    return [...this.byId.values()].filter((followed) => this.budgetLeft(followed) <= 0);
  }

  /**
   * Give up those of these tasks whose budget has not been renewed meanwhile.
   * @param {FollowedTask[]} expired
   */
  failExpired(expired) {
    const error = new PollError("budget_spent", 0, "Nothing has changed for a long time");
    for (const followed of expired) {
      if (this.byId.get(followed.taskId) === followed && this.budgetLeft(followed) <= 0) this.fail(followed, error);
    }
  }

  // Replies ---------------------------------------------------------------------------------------

  /**
   * Pass the newer states and places of a reply to the watchers.
   * @param {PollReply} reply
   * @returns {boolean} whether there were any. A reset doesn't count: two servers may disagree without end.
   */
  apply({ tasks, notFound, isLast, poll }) {
    const reset = poll.reason === "reset";
    const updates = tasks.filter((task) => this.applyTask(task, { reset, isLast }));
    const error = new PollError("task_not_found", 404, "Task not found");
    for (const taskId of notFound) {
      const followed = this.byId.get(taskId);
      if (followed) this.fail(followed, error);
    }
    return updates.length > 0 && !reset;
  }

  /**
   * Ignore an older version, unless the server has reset its versions.
   * @param {Task} task
   * @param {{reset: boolean, isLast: boolean}} how
   * @returns {boolean} whether its version or its place is another one than that of before
   */
  applyTask(task, { reset, isLast }) {
    const followed = this.byId.get(task.taskId);
    const before = followed?.version ?? -1;
    if (!followed || (task.version < before && !reset)) return false;
    const place = placeOf(task);
    const isUpdate = task.version !== before || place !== followed.place;
    if (isUpdate) {
      followed.version = task.version;
      followed.place = place;
      followed.quietSince = this.now();
      followed.watcher.onUpdate(task, reset);
    }
    if (isLast || isFinished(task)) {
      this.byId.delete(task.taskId);
      followed.watcher.onEnd(task);
    }
    return isUpdate;
  }

  /**
   * @param {FollowedTask} followed
   * @param {PollError} error
   */
  fail(followed, error) {
    this.byId.delete(followed.taskId);
    followed.watcher.onError(error);
  }

  /** @param {PollError} error */
  failAll(error) {
    for (const followed of [...this.byId.values()]) this.fail(followed, error);
  }
}
