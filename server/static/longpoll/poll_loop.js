// @ts-check
/**
 * The loop of a long poll: ask, show what came, ask again at once.
 *
 * The server holds a request until something differs from what the client has seen, or the hold ends.
 * Almost all of this file is about what happens when that does not go well. How the server is asked is
 * the caller's: `follow.js` asks for one task, `leader.js` for all tasks that any tab shows.
 */

import { ApiError, isPassing } from "./api.js";

/** @typedef {import("./api.js").Task} Task */
/**
 * @typedef {object} Poll
 * @property {string} reason
 * @property {boolean} changed
 * @property {number} waitedMs
 * @property {"again"|"stop"} next
 * @property {number|null} retryAfterMs
 *
 * @typedef {object} Answer
 * @property {Task[]} items the tasks that the server told of
 * @property {string[]} notFound
 * @property {boolean} last whether the server says that there is nothing more to come
 * @property {Poll} poll
 *
 * @typedef {object} State what the loop is doing
 * @property {"asking"|"holding"|"waiting"|"retrying"|"away"} name
 * @property {number} attempt failed polls in a row
 * @property {number} delayMs until the next poll
 *
 * @typedef {object} Entry one task that is followed
 * @property {string} taskId
 * @property {string} createdAt
 * @property {number|undefined} version what was shown last
 * @property {number|null} quietSince null until it is first asked for
 * @property {Watcher} watcher
 *
 * @typedef {object} Watcher
 * @property {(data: Task, reset: boolean) => void} onUpdate
 * @property {(data: Task) => void} onEnd
 * @property {(error: PollError) => void} onError following ended without a final state
 *
 * @typedef {object} Question
 * @property {Entry[]} entries
 * @property {boolean} instant wanted is the state as it is, without a hold
 * @property {AbortSignal} signal
 *
 * @typedef {object} Options
 * @property {AbortSignal} [signal]
 * @property {(state: State) => void} [onState]
 * @property {(ms: number, signal: AbortSignal) => Promise<void>} [sleep]
 * @property {() => number} [random]
 * @property {() => number} [now] milliseconds, monotonic
 * @property {number} [holdSeconds]
 * @property {number} [clientTimeoutSeconds]
 * @property {number} [budgetSeconds] how long nothing may change before a task is given up
 *
 * @typedef {{own: number, asked: number}} Delay our own, and what the server asked for, in ms
 */

/** A reply that came sooner than this was not held. */
const QUICK_MS = 250;
/** So many quick replies in a row may all bring news before they, too, are spaced. */
const QUICK_NEWS = 20;

const TERMINAL = new Set(["completed", "failed", "canceled"]);
const INTERRUPTED = Symbol("interrupted");

/** Following ended without a final state; `code` says why, `status` is the reply's or 0. */
export class PollError extends Error {
  /** @param {string} code @param {number} status @param {string} message */
  constructor(code, status, message) {
    super(message);
    this.name = "PollError";
    this.code = code;
    this.status = status;
  }
}

/** Whether a task has ended. @param {Task} task */
export function isFinished(task) {
  return TERMINAL.has(task.status);
}

/** Milliseconds to wait after failure number `attempt` (from 0): exponential, full jitter. @param {number} attempt */
export function backoff(attempt, random = Math.random) {
  return random() * Math.min(1000 * 2 ** attempt, 10000);
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal
 * @returns {Promise<void>} rejects with the signal's reason
 */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/**
 * Tell a pursuit when the page is left and when someone is back.
 * @param {{wake: () => void, leave: () => void, comeBack: () => void}} pursuit
 * @returns {() => void} stops listening
 */
export function listenToPage(pursuit) {
  const listening = new AbortController();
  const options = { signal: listening.signal };
  const wakeIfVisible = () => document.visibilityState === "visible" && pursuit.wake();
  document.addEventListener("visibilitychange", wakeIfVisible, options);
  window.addEventListener("online", () => pursuit.wake(), options);
  window.addEventListener("pagehide", () => pursuit.leave(), options);
  window.addEventListener("pageshow", () => pursuit.comeBack(), options);
  return () => listening.abort();
}

/** Tasks being followed by one request at a time: the loop and all it must remember. */
export class Pursuit {
  /**
   * @param {(question: Question) => Promise<Answer>} ask
   * @param {Options & {places?: number}} options `places`: how many tasks one request can name
   */
  constructor(ask, options) {
    this.ask = ask;
    this.places = options.places ?? 1;
    this.signal = options.signal;
    this.onState = options.onState ?? (() => {});
    this.sleep = options.sleep ?? sleep;
    this.random = options.random ?? Math.random;
    this.now = options.now ?? (() => performance.now());
    this.holdMs = (options.holdSeconds ?? 30) * 1000;
    this.clientTimeoutMs = options.clientTimeoutSeconds
      ? options.clientTimeoutSeconds * 1000
      : this.holdMs + 15000;
    this.budgetMs = (options.budgetSeconds ?? 600) * 1000;

    /** @type {Map<string, Entry>} */
    this.entries = new Map();
    this.failures = 0;
    this.quickReplies = 0;
    this.quickRepeats = 0;
    this.wokenAt = -Infinity;
    this.woken = false;
    this.away = false;
    this.activity = new AbortController();
    this.signal?.addEventListener("abort", () => this.interrupt(this.signal?.reason), { once: true });
  }

  /**
   * Follow a task from the version already shown; a request under way is sent anew with it.
   * @param {{taskId: string, version?: number, createdAt?: string}} task
   * @param {Watcher} watcher
   */
  add({ taskId, version, createdAt = "" }, watcher) {
    this.entries.set(taskId, { taskId, version, createdAt, watcher, quietSince: null });
    if (version === undefined) this.woken = true;
    this.interrupt(INTERRUPTED);
  }

  /** Follow a task no longer; a request under way is sent anew without it. @param {string} taskId */
  drop(taskId) {
    if (this.entries.delete(taskId)) this.interrupt(INTERRUPTED);
  }

  /** Ask until nothing is followed any more. Rejects only when the signal says so. */
  async run() {
    while (this.entries.size) {
      await this.untilBack();
      this.signal?.throwIfAborted();
      if (!this.entries.size) return;
      // Timers may have slept with the machine: look once more before giving up.
      const spent = this.spent();
      const delay = await this.poll(this.woken || spent.length > 0);
      this.giveUp(spent);
      await this.pause(delay);
    }
  }

  /** Someone is looking again, or the network is back: ask now. */
  wake() {
    const now = this.now();
    if (this.away || now - this.wokenAt < QUICK_MS) return;
    this.wokenAt = now;
    for (const entry of this.entries.values()) if (entry.quietSince !== null) entry.quietSince = now;
    this.woken = true;
    this.interrupt(INTERRUPTED);
  }

  /** The page goes, perhaps into the back/forward cache, where an open request would bar it. */
  leave() {
    this.away = true;
    this.onState({ name: "away", attempt: this.failures, delayMs: 0 });
    this.interrupt(INTERRUPTED);
  }

  comeBack() {
    if (!this.away) return;
    this.away = false;
    this.wake();
    this.woken = true;
    this.interrupt(INTERRUPTED);
  }

  /** @param {unknown} reason */
  interrupt(reason) {
    this.activity.abort(reason);
  }

  begin() {
    this.activity = new AbortController();
    if (this.signal?.aborted) this.activity.abort(this.signal.reason);
    return this.activity;
  }

  async untilBack() {
    while (this.away && !this.signal?.aborted) {
      const { signal } = this.begin();
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    }
  }

  /** The newest tasks, as many as one request can name: the others follow when these have ended. */
  chosen() {
    const newestFirst = [...this.entries.values()].sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
    return newestFirst.slice(0, this.places);
  }

  /** @param {Entry} entry */
  budgetLeft({ quietSince }) {
    return this.budgetMs - (this.now() - (quietSince ?? this.now()));
  }

  /** The tasks that have been quiet for too long. */
  spent() {
    return [...this.entries.values()].filter((entry) => this.budgetLeft(entry) <= 0);
  }

  /** Give up those of these tasks that are still quiet. @param {Entry[]} spent */
  giveUp(spent) {
    const error = new PollError("budget_spent", 0, "Nothing has changed for a long time");
    for (const entry of spent) {
      if (this.entries.get(entry.taskId) === entry && this.budgetLeft(entry) <= 0) this.fail(entry, error);
    }
  }

  /**
   * One poll.
   * @param {boolean} instant ask for the state as it is, without a hold
   * @returns {Promise<Delay>} how long to wait before the next
   */
  async poll(instant) {
    this.woken = false;
    this.onState({ name: instant ? "asking" : "holding", attempt: this.failures, delayMs: 0 });
    const startedAt = this.now();
    const activity = this.begin();
    let answer;
    try {
      answer = await this.askInTime(activity, instant);
    } catch (error) {
      return this.takeFailure(activity.signal.aborted ? activity.signal.reason : error);
    }
    this.signal?.throwIfAborted();
    this.failures = 0;
    const news = this.take(answer);
    const spacing = instant ? 0 : this.spacing(this.now() - startedAt, news);
    return { own: spacing, asked: Math.max(0, answer.poll.retryAfterMs ?? 0) };
  }

  /** @param {AbortController} activity @param {boolean} instant */
  async askInTime(activity, instant) {
    const entries = this.chosen();
    for (const entry of entries) entry.quietSince ??= this.now();
    const watchdog = new AbortController();
    const limit = instant ? this.clientTimeoutMs - this.holdMs : this.clientTimeoutMs;
    const silent = new PollError("no_answer", 0, "The server did not answer in time");
    this.sleep(limit, watchdog.signal).then(
      () => activity.abort(silent),
      () => {},
    );
    try {
      return await this.ask({ entries, instant, signal: activity.signal });
    } finally {
      watchdog.abort();
    }
  }

  /**
   * Show an answer, unless something newer was shown already.
   * @param {Answer} answer
   * @returns {boolean} whether it brought news
   */
  take({ items, notFound, last, poll }) {
    const reset = poll.reason === "reset";
    const news = items.filter((data) => this.takeItem(data, { reset, last })).length > 0;
    const gone = new PollError("task_not_found", 404, "Task not found");
    for (const entry of notFound.map((taskId) => this.entries.get(taskId))) if (entry) this.fail(entry, gone);
    return news && !reset;
  }

  /** @param {Task} data @param {{reset: boolean, last: boolean}} how `reset`: the server's versions begin anew */
  takeItem(data, { reset, last }) {
    const entry = this.entries.get(data.taskId);
    const shown = entry?.version ?? -1;
    if (!entry || (data.version < shown && !reset)) return false;
    const news = data.version !== shown;
    if (news) {
      entry.version = data.version;
      entry.quietSince = this.now();
      entry.watcher.onUpdate(data, reset);
    }
    if (last || isFinished(data)) this.finish(entry, data);
    return news;
  }

  /** @param {Entry} entry @param {Task} data */
  finish(entry, data) {
    this.entries.delete(entry.taskId);
    entry.watcher.onEnd(data);
  }

  /** @param {Entry} entry @param {PollError} error */
  fail(entry, error) {
    this.entries.delete(entry.taskId);
    entry.watcher.onError(error);
  }

  /**
   * A server that answers at once, again and again, must not be hammered.
   * @param {number} tookMs
   * @param {boolean} news
   */
  spacing(tookMs, news) {
    if (tookMs >= QUICK_MS) {
      this.quickReplies = this.quickRepeats = 0;
      return 0;
    }
    this.quickReplies += 1;
    if (!news) return Math.max(QUICK_MS, backoff(this.quickRepeats++, this.random));
    this.quickRepeats = 0;
    return this.quickReplies > QUICK_NEWS ? QUICK_MS : 0;
  }

  /**
   * One failed poll ends nothing, unless asking again is pointless.
   * @param {any} error
   * @returns {Delay}
   */
  takeFailure(error) {
    if (error === INTERRUPTED) return { own: 0, asked: 0 };
    if (this.signal?.aborted) throw this.signal.reason;
    if (!isPassing(error)) return this.failAll(error);
    const own = backoff(this.failures++, this.random);
    const asked = error instanceof ApiError ? error.retryAfterMs : 0;
    const delayMs = Math.max(own, asked);
    this.onState({ name: "retrying", attempt: this.failures, delayMs });
    return { own, asked };
  }

  /** A refusal that asking again can't mend. @param {ApiError} error @returns {Delay} */
  failAll({ status, code, message }) {
    const final = new PollError(code, status, message);
    for (const entry of [...this.entries.values()]) this.fail(entry, final);
    return { own: 0, asked: 0 };
  }

  /**
   * Wait before the next poll. A wake cuts short our own delay, not the one the server asked for:
   * an `online` event reaches all clients of an overloaded server at once.
   * @param {Delay} delay
   * @returns {Promise<void>}
   */
  async pause({ own, asked }) {
    const delayMs = Math.max(own, asked);
    if (!this.entries.size || delayMs === 0 || (this.woken && asked === 0)) return;
    if (this.failures === 0) this.onState({ name: "waiting", attempt: 0, delayMs });
    const startedAt = this.now();
    const left = Math.max(0, Math.min(...[...this.entries.values()].map((entry) => this.budgetLeft(entry))));
    try {
      await this.sleep(Math.min(delayMs, left), this.begin().signal);
    } catch (error) {
      if (this.signal?.aborted) throw this.signal.reason;
      if (error !== INTERRUPTED) throw error;
      return this.pause({ own: 0, asked: Math.max(0, asked - (this.now() - startedAt)) });
    }
    if (asked <= left) return;
    this.giveUp(this.spent());
    return this.pause({ own: 0, asked: asked - left });
  }
}
