// @ts-check
/** Asks the server for all that any tab of this browser shows, with one request at a time. */

import { randomId, requestJson } from "./api.js";
import { PollError, Pursuit } from "./poll_loop.js";

/** @typedef {import("./api.js").Task} Task */
/** @typedef {{taskId: string, version: number, createdAt: string}} Want what a tab shows of a task */
/**
 * What a leader tells the tabs.
 * @typedef {{kind: "news", data: Task, reset: boolean}} News
 * @typedef {{kind: "failed", taskId: string, error: {code: string, status: number, message: string}}} Failure
 * @typedef {{kind: "state", state: import("./poll_loop.js").State}} StateChange
 * @typedef {{holdSeconds: number, clientTimeoutSeconds: number, budgetSeconds: number}} Settings
 */

/** So many tasks can be named in one request. The newest are; the others follow as places get free. */
const PLACES = 50;
/** Progress may come two steps at a time, the end may not: the server holds the one back, not the other. */
const GATHER_SECONDS = 2;
/** Within this time all tabs have said what they want. */
const SETTLE_MS = 30;

/**
 * @param {import("./poll_loop.js").Question} question
 * @param {string} clientId
 * @returns {Promise<import("./poll_loop.js").Answer>}
 */
async function askBatch({ entries, instant, signal }, clientId) {
  const query = new URLSearchParams({ c: clientId, gather: String(GATHER_SECONDS) });
  if (instant) query.set("wait", "0");
  for (const { taskId, version } of entries) query.append("task", `${taskId}:${version ?? 0}`);
  const reply = await requestJson(`/api/generate/status/batch?${query}`, { signal });
  if (!Array.isArray(reply?.items) || !Array.isArray(reply.notFound)) {
    throw new PollError("bad_reply", 200, "The reply was not about tasks");
  }
  return { items: reply.items, notFound: reply.notFound, last: false, poll: reply.poll ?? {} };
}

export class Leader {
  /** @param {Settings} settings @param {(message: News|Failure|StateChange) => void} tell every tab, this one too */
  constructor(settings, tell) {
    this.tell = tell;
    this.reign = new AbortController();
    /** @type {Map<string, Set<string>>} the tasks that each tab shows */
    this.wants = new Map();
    this.running = false;
    const clientId = randomId();
    this.pursuit = new Pursuit((question) => askBatch(question, clientId), {
      ...settings,
      places: PLACES,
      signal: this.reign.signal,
      onState: (state) => this.tell({ kind: "state", state }),
    });
  }

  /** Take what a tab shows now, instead of what it showed before. @param {string} tab @param {Want[]} tasks */
  want(tab, tasks) {
    this.wants.set(tab, new Set(tasks.map(({ taskId }) => taskId)));
    if (!tasks.length) this.wants.delete(tab);
    const sets = [...this.wants.values()];
    for (const taskId of [...this.pursuit.entries.keys()]) {
      if (!sets.some((wanted) => wanted.has(taskId))) this.pursuit.drop(taskId);
    }
    for (const task of tasks) this.follow(task);
    this.run();
  }

  /** @param {Want} task */
  follow(task) {
    const { taskId, version } = task;
    const known = this.pursuit.entries.get(taskId)?.version;
    // A tab that is behind is told what it missed by asking from where it is: the others know it already.
    if (known !== undefined && known <= version) return;
    this.pursuit.add(task, {
      onUpdate: (data, reset) => this.tell({ kind: "news", data, reset }),
      onEnd: () => {},
      onError: ({ code, status, message }) => this.tell({ kind: "failed", taskId, error: { code, status, message } }),
    });
  }

  /** Ask as long as there is anything to ask for. */
  async run() {
    if (this.running) return;
    this.running = true;
    try {
      await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
      await this.pursuit.run();
    } catch (error) {
      if (!this.reign.signal.aborted) reportError(error);
    }
    this.running = false;
    if (this.pursuit.entries.size && !this.reign.signal.aborted) this.run();
  }

  /** Somebody is looking, or the network is back: ask now. */
  wake() {
    this.pursuit.wake();
  }

  /** Ask no more. */
  stop() {
    this.reign.abort();
  }
}
