// @ts-check
/**
 * Follow a task by HTTP long polling.
 *
 * The server holds the status request until the task's version is not the one named, or the hold
 * ends. So the loop is: ask with the version last shown, show what came, ask again at once. All the
 * rest of this file is about what happens when that does not go well.
 */

import { ApiError, isPassing, randomId, requestJson } from "./api.js";

/** @typedef {import("./api.js").Task} Task */
/**
 * @typedef {object} Poll
 * @property {string} reason
 * @property {boolean} changed
 * @property {number} waitedMs
 * @property {"again"|"stop"} next
 * @property {number|null} retryAfterMs
 *
 * @typedef {{data: Task, poll: Poll}} Reply
 *
 * @typedef {object} State what the follower is doing
 * @property {"asking"|"holding"|"waiting"|"retrying"|"away"} name
 * @property {number} attempt failed polls in a row
 * @property {number} delayMs until the next poll
 *
 * @typedef {object} Options
 * @property {number} [version] the version already shown
 * @property {AbortSignal} [signal]
 * @property {(data: Task) => void} [onUpdate]
 * @property {(state: State) => void} [onState]
 * @property {string} [clientId] random for each page
 * @property {typeof fetch} [fetch]
 * @property {(ms: number, signal: AbortSignal) => Promise<void>} [sleep]
 * @property {() => number} [random]
 * @property {() => number} [now] milliseconds, monotonic
 * @property {number} [holdSeconds]
 * @property {number} [clientTimeoutSeconds]
 * @property {number} [budgetSeconds] how long nothing may change before giving up
 */

/** A reply that came sooner than this was not held. */
const QUICK_MS = 250;
/** So many quick replies in a row may all bring news before they, too, are spaced. */
const QUICK_NEWS = 20;

const TERMINAL = new Set(["completed", "failed", "canceled"]);
const FINAL_CODES = { 401: "not_signed_in", 404: "task_not_found", 410: "task_deleted" };
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

/** Milliseconds to wait after failure number `attempt` (from 0): exponential, full jitter. */
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
 * Ask for a task's status once.
 * @param {string} taskId
 * @param {{version?: number, wait?: number, clientId: string, signal?: AbortSignal, fetch?: typeof fetch}} options
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
  const pursuit = new Pursuit(taskId, options);
  const stopListening = listenToPage(pursuit);
  try {
    return await pursuit.run();
  } finally {
    stopListening();
  }
}

/** Tell a pursuit when the page is left and when someone is back. @param {Pursuit} pursuit */
function listenToPage(pursuit) {
  const listening = new AbortController();
  const options = { signal: listening.signal };
  const wakeIfVisible = () => document.visibilityState === "visible" && pursuit.wake();
  document.addEventListener("visibilitychange", wakeIfVisible, options);
  window.addEventListener("online", () => pursuit.wake(), options);
  window.addEventListener("pagehide", () => pursuit.leave(), options);
  window.addEventListener("pageshow", () => pursuit.comeBack(), options);
  pursuit.signal?.addEventListener("abort", () => pursuit.interrupt(pursuit.signal?.reason), options);
  return () => listening.abort();
}

/** One task being followed: the loop and all it must remember. */
class Pursuit {
  /** @param {string} taskId @param {Options} options */
  constructor(taskId, options) {
    this.taskId = taskId;
    this.version = options.version;
    this.signal = options.signal;
    this.onUpdate = options.onUpdate ?? (() => {});
    this.onState = options.onState ?? (() => {});
    this.clientId = options.clientId ?? randomId();
    this.fetch = options.fetch ?? globalThis.fetch;
    this.sleep = options.sleep ?? sleep;
    this.random = options.random ?? Math.random;
    this.now = options.now ?? (() => performance.now());
    this.holdMs = (options.holdSeconds ?? 30) * 1000;
    this.clientTimeoutMs = options.clientTimeoutSeconds
      ? options.clientTimeoutSeconds * 1000
      : this.holdMs + 15000;
    this.budgetMs = (options.budgetSeconds ?? 600) * 1000;

    this.failures = 0;
    this.quickReplies = 0;
    this.quickRepeats = 0;
    this.quietSince = this.now();
    this.wokenAt = -Infinity;
    this.woken = this.version === undefined;
    this.away = false;
    this.activity = new AbortController();
    /** @type {Task|null} */
    this.final = null;
  }

  async run() {
    for (;;) {
      await this.untilBack();
      this.signal?.throwIfAborted();
      // Timers may have slept with the machine: look once more before giving up.
      const lastLook = this.budgetLeft() <= 0;
      const delay = await this.poll(this.woken || lastLook);
      if (this.final) return this.final;
      if (lastLook && this.budgetLeft() <= 0) throw spentBudget();
      await this.pause(delay);
    }
  }

  /** Someone is looking again, or the network is back: ask now. */
  wake() {
    const now = this.now();
    if (this.away || now - this.wokenAt < QUICK_MS) return;
    this.wokenAt = now;
    this.quietSince = now;
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
    if (!this.away) return;
    const { signal } = this.begin();
    if (signal.aborted) return;
    await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  }

  budgetLeft() {
    return this.budgetMs - (this.now() - this.quietSince);
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
    let reply;
    try {
      reply = await this.ask(activity, instant);
    } catch (error) {
      return this.takeFailure(activity.signal.aborted ? activity.signal.reason : error);
    }
    this.signal?.throwIfAborted();
    this.failures = 0;
    const news = this.take(reply);
    const spacing = instant ? 0 : this.spacing(this.now() - startedAt, news);
    return { own: spacing, asked: Math.max(0, reply.poll.retryAfterMs ?? 0) };
  }

  /** @param {AbortController} activity @param {boolean} instant */
  async ask(activity, instant) {
    const watchdog = new AbortController();
    const limit = instant ? this.clientTimeoutMs - this.holdMs : this.clientTimeoutMs;
    const silent = new PollError("no_answer", 0, "The server did not answer in time");
    this.sleep(limit, watchdog.signal).then(
      () => activity.abort(silent),
      () => {},
    );
    try {
      const { version, clientId, fetch } = this;
      const wait = instant ? 0 : undefined;
      return await askStatus(this.taskId, { version, wait, clientId, fetch, signal: activity.signal });
    } finally {
      watchdog.abort();
    }
  }

  /**
   * Show a reply unless something newer was shown already.
   * @param {Reply} reply
   * @returns {boolean} whether it was news
   */
  take({ data, poll }) {
    const reset = poll.reason === "reset";
    const shown = this.version ?? -1;
    if (data.version < shown && !reset) return false;
    const news = data.version !== shown;
    if (news) {
      this.version = data.version;
      this.quietSince = this.now();
      this.onUpdate(data);
    }
    if (poll.next === "stop" || isFinished(data)) this.final = data;
    return news && !reset;
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
    if (!isPassing(error)) throw finalError(error);
    const own = backoff(this.failures++, this.random);
    const asked = error instanceof ApiError ? error.retryAfterMs : 0;
    const delayMs = Math.max(own, asked);
    this.onState({ name: "retrying", attempt: this.failures, delayMs });
    return { own, asked };
  }

  /**
   * Wait before the next poll. A wake cuts short our own delay, not the one the server asked for:
   * an `online` event reaches all clients of an overloaded server at once.
   * @param {Delay} delay
   */
  async pause({ own, asked }) {
    const delayMs = Math.max(own, asked);
    if (delayMs === 0 || (this.woken && asked === 0)) return;
    if (this.failures === 0) this.onState({ name: "waiting", attempt: 0, delayMs });
    const startedAt = this.now();
    const left = Math.max(0, this.budgetLeft());
    try {
      await this.sleep(Math.min(delayMs, left), this.begin().signal);
    } catch (error) {
      if (this.signal?.aborted) throw this.signal.reason;
      if (error !== INTERRUPTED) throw error;
      return this.pause({ own: 0, asked: Math.max(0, asked - (this.now() - startedAt)) });
    }
    if (asked > left) throw spentBudget();
  }
}

/** @typedef {{own: number, asked: number}} Delay our own, and what the server asked for, in ms */

function spentBudget() {
  return new PollError("budget_spent", 0, "Nothing has changed for a long time");
}

/** Why following ends, from a refusal that asking again can't mend. @param {any} error */
export function finalError(error) {
  return new PollError(FINAL_CODES[error.status] ?? error.code, error.status, error.message);
}
