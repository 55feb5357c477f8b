// @ts-check
/**
 * Who may poll: the desk shares the page's few connections among its unfinished tasks.
 *
 * HTTP/1.1 gives a browser six connections to one host. A page uses at most four for polls, all tabs
 * together hold at most four, so that a submit or a picture never queues behind a hold. The newest
 * tasks are held; those that find no place are asked in rounds, one at a time, without a hold. A
 * transport that asks for all tasks in one request can replace this file: the cards know only `watch`
 * and `forget`.
 */

import { ApiError, isPassing } from "./api.js";
import { askStatus, backoff, finalError, follow, isFinished, sleep } from "./longpoll.js";
import { takeSlot } from "./slots.js";

/** @typedef {import("./api.js").Task} Task */
/**
 * @typedef {object} Watcher
 * @property {(data: Task) => void} onUpdate
 * @property {(state: import("./longpoll.js").State) => void} onState
 * @property {(data: Task) => void} onEnd
 * @property {(error: import("./longpoll.js").PollError) => void} onError following ended without a final state
 *
 * @typedef {object} Entry
 * @property {string} taskId
 * @property {string} createdAt
 * @property {number} version
 * @property {Watcher} watcher
 * @property {AbortController|null} holding while a poll is held
 * @property {Promise<void>} ended when the last held poll has given back its slot
 *
 * @typedef {{clientId: string, holdSeconds: number, clientTimeoutSeconds: number, budgetSeconds: number}} Settings
 */

const POLLS_IN_FLIGHT = 4;
const ROUND_MS = 1000;
const ROUND_TIMEOUT_MS = 15000;

export class Desk {
  /** @param {Settings} settings */
  constructor(settings) {
    this.settings = settings;
    /** @type {Map<string, Entry>} */
    this.entries = new Map();
    this.arranged = Promise.resolve();
    this.going = false;
    this.failures = 0;
  }

  /** Follow a task from the version already shown. @param {Task} task @param {Watcher} watcher */
  watch(task, watcher) {
    this.forget(task.taskId);
    const { taskId, createdAt, version } = task;
    const idle = { holding: null, ended: Promise.resolve() };
    this.entries.set(taskId, { taskId, createdAt, version, watcher, ...idle });
    this.arrange();
  }

  /** Follow a task no longer. @param {string} taskId */
  forget(taskId) {
    const entry = this.entries.get(taskId);
    if (!entry) return;
    this.entries.delete(taskId);
    const ended = this.release(entry);
    this.arranged = this.arranged.then(() => ended);
    this.arrange();
  }

  /** Share the connections anew, one arrangement after the other. */
  arrange() {
    this.arranged = this.arranged.then(() => this.settle());
    return this.arranged;
  }

  /** Hold polls for the newest tasks, release the others into the rounds. */
  async settle() {
    const newestFirst = [...this.entries.values()].sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
    const crowded = newestFirst.length > POLLS_IN_FLIGHT;
    const places = crowded ? POLLS_IN_FLIGHT - 1 : POLLS_IN_FLIGHT;
    await Promise.all(newestFirst.slice(places).map((entry) => this.release(entry)));
    const free = newestFirst.slice(0, places).filter(({ holding }) => !holding);
    await Promise.all(free.map((entry) => this.hold(entry)));
    this.goRounds();
  }

  /** End a task's held poll; resolves when its slot is given back. @param {Entry} entry */
  release(entry) {
    entry.holding?.abort();
    entry.holding = null;
    return entry.ended;
  }

  /** Hold a poll for a task, unless other tabs hold all there may be. @param {Entry} entry */
  async hold(entry) {
    const giveBack = await takeSlot().catch(() => () => {});
    if (!giveBack) return;
    if (this.entries.get(entry.taskId) !== entry) return giveBack();
    entry.holding = new AbortController();
    entry.ended = this.follow(entry, entry.holding).catch(reportError).finally(giveBack);
  }

  /** @param {Entry} entry @param {AbortController} holding */
  async follow(entry, holding) {
    const onUpdate = (/** @type {Task} */ data) => this.show(entry, data);
    const { onState } = entry.watcher;
    const { version } = entry;
    try {
      const options = { ...this.settings, version, onUpdate, onState, signal: holding.signal };
      this.finish(entry, await follow(entry.taskId, options));
    } catch (error) {
      if (!holding.signal.aborted) this.fail(entry, error);
    }
  }

  /** Ask for the tasks that have no held poll, one after another, while there are any. */
  async goRounds() {
    if (this.going) return;
    this.going = true;
    for (let entry; (entry = this.nextWaiting()); ) {
      const extra = document.visibilityState === "visible" ? await this.visit(entry) : 0;
      await sleep(ROUND_MS + extra, new AbortController().signal);
      await this.arrange();
    }
    this.going = false;
  }

  /** The waiting task that was not asked for longest. */
  nextWaiting() {
    const entry = [...this.entries.values()].find(({ holding }) => !holding);
    if (!entry) return null;
    this.entries.delete(entry.taskId);
    this.entries.set(entry.taskId, entry);
    return entry;
  }

  /** @param {Entry} entry @returns {Promise<number>} milliseconds to wait longer before the next */
  async visit(entry) {
    const { taskId, version } = entry;
    const { clientId } = this.settings;
    const signal = AbortSignal.timeout(ROUND_TIMEOUT_MS);
    try {
      const reply = await askStatus(taskId, { version, wait: 0, clientId, signal });
      this.failures = 0;
      this.take(entry, reply);
      return reply.poll.retryAfterMs ?? 0;
    } catch (error) {
      if (!isPassing(error)) this.fail(entry, finalError(error));
      const asked = error instanceof ApiError ? error.retryAfterMs : 0;
      return Math.max(asked, backoff(this.failures++));
    }
  }

  /** @param {Entry} entry @param {import("./longpoll.js").Reply} reply */
  take(entry, { data, poll }) {
    if (data.version > entry.version || poll.reason === "reset") this.show(entry, data);
    if (isFinished(data)) this.finish(entry, data);
  }

  /** @param {Entry} entry @param {Task} data */
  show(entry, data) {
    entry.version = data.version;
    if (this.entries.get(entry.taskId) === entry) entry.watcher.onUpdate(data);
  }

  /** @param {Entry} entry @param {Task} data */
  finish(entry, data) {
    if (this.entries.get(entry.taskId) !== entry) return;
    this.forget(entry.taskId);
    entry.watcher.onEnd(data);
  }

  /** @param {Entry} entry @param {any} error */
  fail(entry, error) {
    if (this.entries.get(entry.taskId) !== entry) return;
    this.forget(entry.taskId);
    entry.watcher.onError(error);
  }
}
