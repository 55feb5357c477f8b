// @ts-check
/** Runs the long-poll client with a clock that stands still until a test moves it. */

import { TaskFeed } from "/static/longpoll/task_feed.js";
import { backoff, follow } from "/static/longpoll.js";

/** @import { State } from "/static/longpoll/poll_loop.js" */
/** @typedef {{due: number, resolve: () => void}} Sleeper */

/** No back-off is as long as the shortest watchdog. */
const WATCHDOG_MS = 15_000;

/** @type {Set<Sleeper>} */
const sleepers = new Set();
const leaving = new AbortController();

const harness = {
  backoff,
  time: 0,
  luck: 1,
  updates: /** @type {number[]} */ ([]),
  states: /** @type {(State|string)[]} */ ([]),
  pauses: /** @type {number[]} */ ([]),
  outcome: /** @type {object|null} */ (null),
  told: /** @type {string[]} */ ([]),
  feed: /** @type {TaskFeed|null} */ (null),

  /**
   * Follow a task; what happens is written down.
   * @param {Parameters<typeof follow>[1]} options
   */
  start(options) {
    const { sleep } = harness;
    follow("task-1", {
      ...options,
      sleep,
      random: () => harness.luck,
      now: () => harness.time,
      signal: leaving.signal,
      onUpdate: ({ version }) => harness.updates.push(version),
      onState: (state) => harness.states.push(state),
    }).then(
      ({ version, status }) => {
        harness.outcome = { version, status };
      },
      ({ name, code, status }) => {
        harness.outcome = { name, code, status };
      },
    );
  },

  /**
   * @param {number} ms
   * @param {AbortSignal} signal
   * @returns {Promise<void>}
   */
  sleep(ms, signal) {
    if (ms < WATCHDOG_MS) harness.pauses.push(ms);
    return new Promise((resolve, reject) => {
      const sleeper = { due: harness.time + ms, resolve };
      sleepers.add(sleeper);
      signal.addEventListener("abort", () => {
        sleepers.delete(sleeper);
        reject(signal.reason);
      });
    });
  },

  /**
   * Let time pass: who slept long enough awakes.
   * @param {number} ms
   */
  advance(ms) {
    harness.time += ms;
    for (const sleeper of [...sleepers].filter(({ due }) => due <= harness.time)) {
      sleepers.delete(sleeper);
      sleeper.resolve();
    }
  },

  leave: () => leaving.abort(),

  /**
   * Watch tasks as a page does, from version 1, the last one the newest; what it is told is written down.
   * @param {string[]} taskIds
   * @param {object} settings
   */
  watch(taskIds, settings = {}) {
    harness.feed ??= new TaskFeed({ holdSeconds: 30, clientTimeoutSeconds: 45, budgetSeconds: 600, ...settings });
    const { feed } = harness;
    for (const [index, taskId] of taskIds.entries()) {
      const createdAt = new Date(Date.UTC(2026, 0, 1) + index * 1000).toISOString();
      const note = (/** @type {string|number} */ what) => harness.told.push(`${taskId} ${what}`);
      feed.watch(
        { taskId, version: 1, createdAt },
        {
          onUpdate: ({ version }) => note(version),
          onState: ({ name }) => harness.states.push(name),
          onEnd: ({ version, status }) => note(`${version} ${status}`),
          onError: ({ code }) => note(code),
        },
      );
    }
  },
};

Object.assign(window, { harness });
