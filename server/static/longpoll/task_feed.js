// @ts-check
/**
 * Updates of the tasks that a page shows, over one held request for all tasks of all tabs.
 *
 * HTTP/1.1 gives a browser six connections to a host, for all its tabs together. So one tab leads: it polls what all of
 * them show, and sends them the updates. The parts of the page call only `watch` and `unwatch`.
 */

import { Leader } from "./leader.js";
import { ignoreUnknown, parseMessage } from "./messages.js";
import { listenToPage } from "./page.js";
import { PollError } from "./poll_error.js";
import { randomId } from "./random_id.js";
import { Tabs } from "./tabs.js";
import { isFinished, placeOf } from "./task.js";

/** @import { PollSettings } from "./leader.js" */
/** @import { Failure, ShownTask, TabMessage } from "./messages.js" */
/** @import { State } from "./poll_loop.js" */
/** @import { Task } from "./task.js" */
/**
 * @typedef {object} FeedWatcher
 * @property {(task: Task) => void} onUpdate
 * @property {(state: State) => void} onState
 * @property {(task: Task) => void} onEnd the final state
 * @property {(error: PollError) => void} onError the task isn't followed any more, without a final state
 *
 * @typedef {ShownTask & {watcher: FeedWatcher}} WatchedTask
 */

/** The leader replies to a ping within milliseconds, unless the browser has frozen its tab. */
const PONG_SECONDS = 5;

export class TaskFeed {
  /** @param {PollSettings & {pongSeconds?: number, user?: string}} settings */
  constructor({ pongSeconds = PONG_SECONDS, user = "", ...settings }) {
    this.pongMs = pongSeconds * 1000;
    this.settings = settings;
    this.tabId = randomId();
    /** @type {Map<string, WatchedTask>} */
    this.watched = new Map();
    /** @type {Leader|null} null while another tab leads */
    this.leader = null;
    this.sendScheduled = false;
    /** @type {number|undefined} runs while another tab leads: first until it is pinged, then until its pong is late */
    this.leaderTimer = undefined;
    this.tabs = new Tabs(user, {
      onMessage: (data) => this.receive(data),
      onLead: () => this.lead(),
      onRetire: () => this.retire(),
    });
    listenToPage(this);
  }

  /**
   * Follow a task from its version on.
   * @param {ShownTask & Parameters<typeof placeOf>[0]} task
   * @param {FeedWatcher} watcher
   */
  watch(task, watcher) {
    const { taskId, createdAt, version } = task;
    this.watched.set(taskId, { taskId, createdAt, version, place: placeOf(task), watcher });
    this.tabs.join();
    this.scheduleSendTasks();
  }

  /**
   * Follow a task no longer.
   * @param {string} taskId
   */
  unwatch(taskId) {
    if (this.watched.delete(taskId)) this.scheduleSendTasks();
  }

  /** Send this tab's tasks once for all changes of this turn of the event loop. */
  scheduleSendTasks() {
    if (this.sendScheduled) return;
    this.sendScheduled = true;
    queueMicrotask(() => {
      this.sendScheduled = false;
      this.sendTasks();
    });
  }

  /** Tell the leader, which may be this tab, what this tab shows. */
  sendTasks() {
    const tasks = [...this.watched.values()].map(({ watcher, ...task }) => task);
    if (this.leader) this.leader.setTasks(this.tabId, tasks);
    else this.tabs.send({ type: "tasks", tab: this.tabId, tasks });
    this.restartLeaderTimer();
  }

  // Leading ---------------------------------------------------------------------------------------

  lead() {
    clearTimeout(this.leaderTimer);
    this.leader = new Leader(this.settings, (message) => {
      this.tabs.send(message);
      this.handle(message);
    });
    this.tabs.send({ type: "leading" });
    this.sendTasks();
  }

  retire() {
    this.leader?.stop();
    this.leader = null;
    this.sendTasks();
  }

  // Messages --------------------------------------------------------------------------------------

  /**
   * Handle a message of another tab.
   * @param {unknown} data
   */
  receive(data) {
    const message = parseMessage(data);
    if (message) this.handle(message);
  }

  /** @param {TabMessage} message */
  handle(message) {
    switch (message.type) {
      case "tasks":
        this.leader?.setTasks(message.tab, message.tasks);
        break;
      case "wake":
        this.leader?.wake();
        break;
      case "ping":
        if (this.leader) this.tabs.send({ type: "pong" });
        break;
      case "leading":
        this.sendTasks();
        break;
      case "pong":
        this.restartLeaderTimer();
        break;
      case "update":
        this.restartLeaderTimer();
        this.applyUpdate(message.task, message.reset);
        break;
      case "failure":
        this.restartLeaderTimer();
        this.applyFailure(message.taskId, message.error);
        break;
      case "state":
        this.restartLeaderTimer();
        for (const { watcher } of this.watched.values()) watcher.onState(message.state);
        break;
      default:
        ignoreUnknown(message);
    }
  }

  /**
   * @param {Task} task
   * @param {boolean} reset whether the version may be lower than the last one
   */
  applyUpdate(task, reset) {
    const watched = this.watched.get(task.taskId);
    const place = placeOf(task);
    if (!watched || (task.version < watched.version && !reset)) return;
    if (task.version === watched.version && place === watched.place) return;
    watched.version = task.version;
    watched.place = place;
    if (!isFinished(task)) {
      watched.watcher.onUpdate(task);
      return;
    }
    this.watched.delete(task.taskId);
    watched.watcher.onEnd(task);
  }

  /**
   * @param {string} taskId
   * @param {Failure} error
   */
  applyFailure(taskId, { code, status, message }) {
    const watched = this.watched.get(taskId);
    if (!watched) return;
    this.watched.delete(taskId);
    watched.watcher.onError(new PollError(code, status, message));
  }

  // A leader that sends nothing -------------------------------------------------------------------

  /** Expect a message from the leader within the time that its longest poll may take. */
  restartLeaderTimer() {
    clearTimeout(this.leaderTimer);
    if (this.leader || !this.watched.size) return;
    this.leaderTimer = setTimeout(() => this.pingLeader(), this.settings.clientTimeoutSeconds * 1000);
  }

  /** Ping the leader, and steal its lock if it doesn't reply in time: the browser may have frozen its tab. */
  pingLeader() {
    clearTimeout(this.leaderTimer);
    if (this.leader || !this.watched.size) return;
    this.tabs.send({ type: "ping" });
    this.leaderTimer = setTimeout(() => this.tabs.stealLock(), this.pongMs);
  }

  // Events of the page ----------------------------------------------------------------------------

  /** Have the leader poll now: the page is visible again, or the network is back. */
  wake() {
    if (this.leader) {
      this.leader.wake();
      return;
    }
    this.tabs.send({ type: "wake" });
    this.pingLeader();
  }

  /** Stop polling, and let another tab lead: the page may go into the back/forward cache. */
  suspend() {
    clearTimeout(this.leaderTimer);
    this.tabs.send({ type: "tasks", tab: this.tabId, tasks: [] });
    this.leader?.stop();
    this.leader = null;
    this.tabs.leave();
  }

  /** Take part again after `suspend`. */
  resume() {
    if (this.watched.size) this.tabs.join();
    this.scheduleSendTasks();
  }
}
