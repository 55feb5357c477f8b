// @ts-check
/** Polls all tasks that any tab shows, with one request at a time. */

import { requestJson } from "./http.js";
import { PollError } from "./poll_error.js";
import { PollLoop } from "./poll_loop.js";
import { randomId } from "./random_id.js";

/** @import { PollInfo, PollReply } from "./followed_tasks.js" */
/** @import { PollMessage, ShownTask } from "./messages.js" */
/** @import { PollRequest } from "./poll_loop.js" */
/** @import { Task } from "./task.js" */
/**
 * @typedef {{holdSeconds: number, clientTimeoutSeconds: number, budgetSeconds: number}} PollSettings
 * @typedef {{items: Task[], notFound: string[], poll: PollInfo}} BatchReply
 */

/** The server takes this many tasks in one request. Older ones follow when some of the newest have finished. */
const MAX_TASKS = 50;
/** For how long the server may gather progress; it replies at once to a new status. */
const GATHER_SECONDS = 2;
/** Within this time every tab has sent its tasks. */
const SETTLE_MS = 30;

/**
 * @param {PollRequest} request
 * @param {string} clientId
 * @returns {Promise<PollReply>}
 */
async function askBatch({ tasks, immediate, signal }, clientId) {
  const query = new URLSearchParams({ c: clientId, gather: String(GATHER_SECONDS) });
  if (immediate) query.set("wait", "0");
  for (const { taskId, version = 0, place } of tasks) {
    query.append("task", place === undefined ? `${taskId}:${version}` : `${taskId}:${version}:${place}`);
  }
  const reply = /** @type {Partial<BatchReply>|null} */ (
    await requestJson(`/api/generate/status/batch?${query}`, { signal })
  );
  if (!Array.isArray(reply?.items) || !Array.isArray(reply.notFound)) {
    throw new PollError("bad_reply", 200, "The reply was not about tasks");
  }
  return { tasks: reply.items, notFound: reply.notFound, isLast: false, poll: reply.poll ?? {} };
}

export class Leader {
  /**
   * @param {PollSettings} settings
   * @param {(message: PollMessage) => void} send to every tab, this one included
   */
  constructor(settings, send) {
    this.send = send;
    this.stopping = new AbortController();
    /** @type {Map<string, Set<string>>} the ids of the tasks that each tab shows */
    this.idsByTab = new Map();
    this.running = false;
    const clientId = randomId();
    this.loop = new PollLoop((request) => askBatch(request, clientId), {
      ...settings,
      maxTasks: MAX_TASKS,
      signal: this.stopping.signal,
      onState: (state) => this.send({ type: "state", state }),
    });
  }

  /**
   * Replace the tasks of a tab, and follow those that any tab shows.
   * @param {string} tab
   * @param {ShownTask[]} tasks
   */
  setTasks(tab, tasks) {
    this.idsByTab.set(tab, new Set(tasks.map(({ taskId }) => taskId)));
    if (!tasks.length) this.idsByTab.delete(tab);
    const shown = [...this.idsByTab.values()];
    for (const taskId of [...this.loop.tasks.byId.keys()]) {
      if (!shown.some((ids) => ids.has(taskId))) this.loop.remove(taskId);
    }
    for (const task of tasks) this.follow(task);
    this.run();
  }

  /** @param {ShownTask} task */
  follow(task) {
    const { taskId, version } = task;
    const polled = this.loop.tasks.byId.get(taskId)?.version;
    // Poll from the version of a tab that is behind: it gets what it has missed, the other tabs ignore it.
    if (polled !== undefined && polled <= version) return;
    this.loop.add(task, {
      onUpdate: (update, reset) => this.send({ type: "update", task: update, reset }),
      onEnd: () => undefined, // the update has told it
      onError: ({ code, status, message }) => this.send({ type: "failure", taskId, error: { code, status, message } }),
    });
  }

  /** Poll as long as there are tasks. */
  async run() {
    if (this.running) return;
    this.running = true;
    try {
      await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
      await this.loop.run();
    } catch (error) {
      if (!this.stopping.signal.aborted) reportError(error);
    }
    this.running = false;
    if (this.loop.tasks.size && !this.stopping.signal.aborted) this.run();
  }

  /** Poll now: a tab is visible again, or the network is back. */
  wake() {
    this.loop.wake();
  }

  /** End the request and send no more. */
  stop() {
    this.stopping.abort();
  }
}
