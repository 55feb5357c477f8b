// @ts-check
/**
 * The loop of a long poll: send a request, pass its reply on, send the next one.
 *
 * The server holds a request until a task has another version than the request names, or until the hold ends. The loop
 * retries failed requests, ends those that get no reply in time, and sends one at once when the page is visible again.
 * The caller sends the requests: `follow.js` for one task, `leader.js` for all tasks of all tabs.
 */

import { FollowedTasks } from "./followed_tasks.js";
import { ApiError, isRetryable } from "./http.js";
import { NO_DELAY, Pacing, sleep } from "./pacing.js";
import { PollError } from "./poll_error.js";

/** @import { FollowedTask, PollReply, Watcher } from "./followed_tasks.js" */
/** @import { Delay } from "./pacing.js" */
/**
 * @typedef {object} PollRequest
 * @property {FollowedTask[]} tasks
 * @property {boolean} immediate whether the server must reply at once (`wait=0`)
 * @property {AbortSignal} signal
 *
 * @typedef {object} State what the loop does now
 * @property {"asking"|"holding"|"waiting"|"retrying"|"away"} name
 * @property {number} attempt failed polls in a row
 * @property {number} delayMs until the next poll
 *
 * @typedef {object} PollOptions
 * @property {AbortSignal | undefined} [signal]
 * @property {(state: State) => void} [onState]
 * @property {(ms: number, signal: AbortSignal) => Promise<void>} [sleep]
 * @property {() => number} [random]
 * @property {() => number} [now] milliseconds, monotonic
 * @property {number} [holdSeconds]
 * @property {number} [clientTimeoutSeconds]
 * @property {number} [budgetSeconds] a task that hasn't changed for this long is given up
 * @property {number} [maxTasks] how many tasks one request can name
 */

/** Wakes within this time count as one: browsers fire several events when a page comes back. */
const WAKE_INTERVAL_MS = 250;
const CLIENT_MARGIN_MS = 15_000;
/** The reason with which a request or a pause is aborted so that the loop begins its next turn. */
const INTERRUPTED = Symbol("interrupted");

/** Follows tasks with one request at a time. */
export class PollLoop {
  /**
   * @param {(request: PollRequest) => Promise<PollReply>} send
   * @param {PollOptions} options
   */
  constructor(send, options) {
    this.send = send;
    this.signal = options.signal;
    this.onState = options.onState ?? (() => undefined);
    this.sleep = options.sleep ?? sleep;
    this.now = options.now ?? (() => performance.now());
    this.holdMs = (options.holdSeconds ?? 30) * 1000;
    this.clientTimeoutMs = options.clientTimeoutSeconds
      ? options.clientTimeoutSeconds * 1000
      : this.holdMs + CLIENT_MARGIN_MS;
    const budgetMs = (options.budgetSeconds ?? 600) * 1000;
    this.tasks = new FollowedTasks({ maxPerRequest: options.maxTasks ?? 1, budgetMs, now: this.now });
    this.pacing = new Pacing(options.random ?? Math.random);
    this.wokenAt = Number.NEGATIVE_INFINITY;
    /** Whether the next request is to be replied to at once. */
    this.immediate = false;
    this.suspended = false;
    /** Aborts the request or the pause of this turn. */
    this.turn = new AbortController();
    this.signal?.addEventListener("abort", () => this.turn.abort(this.signal?.reason), { once: true });
  }

  /**
   * Follow a task from the given version on; a held request is sent again with it.
   * @param {{taskId: string, version?: number | undefined, createdAt?: string, place?: number | undefined}} task
   * @param {Watcher} watcher
   */
  add(task, watcher) {
    this.tasks.add(task, watcher);
    if (task.version === undefined) this.immediate = true;
    this.interrupt();
  }

  /**
   * Follow a task no longer; a held request is sent again without it.
   * @param {string} taskId
   */
  remove(taskId) {
    if (this.tasks.byId.delete(taskId)) this.interrupt();
  }

  /** Poll until no task is followed. Rejects only with the signal's reason. */
  async run() {
    while (this.tasks.size) {
      await this.waitUntilResumed();
      this.signal?.throwIfAborted();
      if (!this.tasks.size) return;
      // Timers stop while a computer sleeps: read the state once more before giving a task up.
      const expired = this.tasks.expired();
      const delay = await this.poll(this.immediate || expired.length > 0);
      this.tasks.failExpired(expired);
      await this.pause(delay);
    }
  }

  // Events of the page ----------------------------------------------------------------------------

  /** Poll now, and without a hold: the page is visible again, or the network is back. */
  wake() {
    const now = this.now();
    if (this.suspended || now - this.wokenAt < WAKE_INTERVAL_MS) return;
    this.wokenAt = now;
    this.tasks.renewBudgets();
    this.immediate = true;
    this.interrupt();
  }

  /** Send nothing until `resume`: an open request would keep the page out of the back/forward cache. */
  suspend() {
    this.suspended = true;
    this.onState({ name: "away", attempt: this.pacing.failures, delayMs: 0 });
    this.interrupt();
  }

  /** Poll again after `suspend`. */
  resume() {
    if (!this.suspended) return;
    this.suspended = false;
    this.wake();
    this.immediate = true;
    this.interrupt();
  }

  // One turn --------------------------------------------------------------------------------------

  interrupt() {
    this.turn.abort(INTERRUPTED);
  }

  startTurn() {
    this.turn = new AbortController();
    if (this.signal?.aborted) this.turn.abort(this.signal.reason);
    return this.turn;
  }

  async waitUntilResumed() {
    while (this.suspended && !this.signal?.aborted) {
      const { signal } = this.startTurn();
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    }
  }

  /**
   * Send one request and apply its reply.
   * @param {boolean} immediate
   * @returns {Promise<Delay>} before the next one
   */
  async poll(immediate) {
    this.immediate = false;
    this.onState({ name: immediate ? "asking" : "holding", attempt: this.pacing.failures, delayMs: 0 });
    const startedAt = this.now();
    const turn = this.startTurn();
    /** @type {PollReply} */
    let reply;
    try {
      reply = await this.sendInTime(turn, immediate);
    } catch (error) {
      return this.handleFailure(turn.signal.aborted ? turn.signal.reason : error);
    }
    this.signal?.throwIfAborted();
    this.pacing.failures = 0;
    const hasUpdate = this.tasks.apply(reply);
    const ownMs = immediate ? 0 : this.pacing.afterReply(this.now() - startedAt, hasUpdate);
    return { ownMs, askedMs: Math.max(0, reply.poll.retryAfterMs ?? 0) };
  }

  /**
   * @param {AbortController} turn
   * @param {boolean} immediate
   */
  async sendInTime(turn, immediate) {
    const tasks = this.tasks.selectForRequest();
    const watchdog = new AbortController();
    const limitMs = immediate ? this.clientTimeoutMs - this.holdMs : this.clientTimeoutMs;
    const timeout = new PollError("no_answer", 0, "The server did not answer in time");
    this.sleep(limitMs, watchdog.signal).then(
      () => turn.abort(timeout),
      () => undefined, // the reply came first
    );
    try {
      return await this.send({ tasks, immediate, signal: turn.signal });
    } finally {
      watchdog.abort();
    }
  }

  /**
   * Return the delay before the next try. A refusal that can't be retried ends every task.
   * @param {unknown} error
   * @returns {Delay}
   */
  handleFailure(error) {
    if (error === INTERRUPTED) return NO_DELAY;
    if (this.signal?.aborted) throw this.signal.reason;
    if (error instanceof ApiError && !isRetryable(error)) {
      this.tasks.failAll(new PollError(error.code, error.status, error.message));
      return NO_DELAY;
    }
    const delay = this.pacing.afterFailure(error instanceof ApiError ? error.retryAfterMs : 0);
    const delayMs = Math.max(delay.ownMs, delay.askedMs);
    this.onState({ name: "retrying", attempt: this.pacing.failures, delayMs });
    return delay;
  }

  /**
   * Wait before the next request, at most until a budget expires. A wake ends only our own delay: an `online` event
   * reaches all clients of an overloaded server at the same moment.
   * @param {Delay} delay
   * @returns {Promise<void>}
   */
  async pause({ ownMs, askedMs }) {
    const delayMs = Math.max(ownMs, askedMs);
    if (!this.tasks.size || delayMs === 0 || (this.immediate && askedMs === 0)) return;
    if (this.pacing.failures === 0) this.onState({ name: "waiting", attempt: 0, delayMs });
    const startedAt = this.now();
    const budgetMs = this.tasks.shortestBudget();
    try {
      await this.sleep(Math.min(delayMs, budgetMs), this.startTurn().signal);
    } catch (error) {
      if (this.signal?.aborted) throw this.signal.reason;
      if (error !== INTERRUPTED) throw error;
      await this.pause({ ownMs: 0, askedMs: Math.max(0, askedMs - (this.now() - startedAt)) });
      return;
    }
    if (askedMs <= budgetMs) return;
    this.tasks.failExpired(this.tasks.expired());
    await this.pause({ ownMs: 0, askedMs: askedMs - budgetMs });
  }
}
