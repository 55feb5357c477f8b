// @ts-check
/**
 * What this page follows. However many tasks and tabs there are, one request is held for all of them.
 *
 * HTTP/1.1 gives a browser six connections to one host, for all its tabs together. So one tab leads: it
 * asks for what all of them show, and tells them what it hears. The cards know only `watch` and `forget`.
 */

import { randomId } from "./api.js";
import { Leader } from "./leader.js";
import { isFinished, listenToPage, PollError } from "./poll_loop.js";
import { Tabs } from "./tabs.js";

/** @typedef {import("./api.js").Task} Task */
/**
 * @typedef {object} Watcher
 * @property {(data: Task) => void} onUpdate
 * @property {(state: import("./poll_loop.js").State) => void} onState
 * @property {(data: Task) => void} onEnd
 * @property {(error: PollError) => void} onError following ended without a final state
 *
 * @typedef {{taskId: string, createdAt: string, version: number, watcher: Watcher}} Entry
 */

/** A leader that is asked whether it is there answers within milliseconds, unless its tab is frozen. */
const PATIENCE_SECONDS = 5;

export class Desk {
  /** @param {import("./leader.js").Settings & {patienceSeconds?: number, user?: string}} settings */
  constructor({ patienceSeconds = PATIENCE_SECONDS, user = "", ...settings }) {
    this.patienceMs = patienceSeconds * 1000;
    this.settings = settings;
    this.name = randomId();
    /** @type {Map<string, Entry>} */
    this.entries = new Map();
    /** @type {Leader|null} if this tab leads */
    this.leader = null;
    this.announcing = false;
    /** @type {number|undefined} */
    this.silence = undefined;
    this.tabs = new Tabs(user, {
      hear: (message) => this.hear(message),
      lead: () => this.lead(),
      retire: () => this.retire(),
    });
    listenToPage(this);
  }

  /** Follow a task from the version already shown. @param {Task} task @param {Watcher} watcher */
  watch({ taskId, createdAt, version }, watcher) {
    this.entries.set(taskId, { taskId, createdAt, version, watcher });
    this.tabs.join();
    this.announce();
  }

  /** Follow a task no longer. @param {string} taskId */
  forget(taskId) {
    if (this.entries.delete(taskId)) this.announce();
  }

  /** Say what this tab shows, once for all that changed in this turn. */
  announce() {
    if (this.announcing) return;
    this.announcing = true;
    queueMicrotask(() => {
      this.announcing = false;
      this.sayWants();
    });
  }

  sayWants() {
    const tasks = [...this.entries.values()].map(({ taskId, createdAt, version }) => ({ taskId, createdAt, version }));
    if (this.leader) this.leader.want(this.name, tasks);
    else this.tabs.tell({ kind: "want", tab: this.name, tasks });
    this.listenForSilence();
  }

  // Leading ---------------------------------------------------------------------------------------

  lead() {
    clearTimeout(this.silence);
    this.leader = new Leader(this.settings, (message) => {
      this.tabs.tell(message);
      this.take(message);
    });
    this.tabs.tell({ kind: "who" });
    this.sayWants();
  }

  retire() {
    this.leader?.stop();
    this.leader = null;
    this.sayWants();
  }

  // Hearing ---------------------------------------------------------------------------------------

  /** A message of another tab. @param {any} message */
  hear(message) {
    const { leader } = this;
    if (message.kind === "who") this.sayWants();
    else if (message.kind === "want") leader?.want(message.tab, message.tasks);
    else if (message.kind === "wake") leader?.wake();
    else if (message.kind === "check") leader && this.tabs.tell({ kind: "here" });
    else this.take(message);
  }

  /** What the leader says, be it this tab or another one. @param {any} message */
  take(message) {
    this.listenForSilence();
    if (message.kind === "news") this.show(message.data, message.reset);
    if (message.kind === "failed") this.fail(message.taskId, message.error);
    if (message.kind === "state") for (const { watcher } of this.entries.values()) watcher.onState(message.state);
  }

  /** @param {Task} data @param {boolean} reset the server's versions have begun anew */
  show(data, reset) {
    const entry = this.entries.get(data.taskId);
    if (!entry || data.version === entry.version || (data.version < entry.version && !reset)) return;
    entry.version = data.version;
    if (!isFinished(data)) return entry.watcher.onUpdate(data);
    this.entries.delete(data.taskId);
    entry.watcher.onEnd(data);
  }

  /** @param {string} taskId @param {{code: string, status: number, message: string}} error */
  fail(taskId, { code, status, message }) {
    const entry = this.entries.get(taskId);
    if (!entry) return;
    this.entries.delete(taskId);
    entry.watcher.onError(new PollError(code, status, message));
  }

  // A leader that says nothing --------------------------------------------------------------------

  /** It has something to say at least once in a hold. */
  listenForSilence() {
    clearTimeout(this.silence);
    if (this.leader || !this.entries.size) return;
    this.silence = setTimeout(() => this.check(), this.settings.clientTimeoutSeconds * 1000);
  }

  /** Make sure that the leader is there; the browser may have frozen its tab. */
  check() {
    clearTimeout(this.silence);
    if (this.leader || !this.entries.size) return;
    this.tabs.tell({ kind: "check" });
    this.silence = setTimeout(() => this.tabs.usurp(), this.patienceMs);
  }

  // Leaving and coming back -----------------------------------------------------------------------

  /** Somebody looks at this tab, or the network is back. */
  wake() {
    if (this.leader) return this.leader.wake();
    this.tabs.tell({ kind: "wake" });
    this.check();
  }

  /** The page goes, perhaps into the back/forward cache. */
  leave() {
    clearTimeout(this.silence);
    this.tabs.tell({ kind: "want", tab: this.name, tasks: [] });
    this.leader?.stop();
    this.leader = null;
    this.tabs.leave();
  }

  comeBack() {
    if (this.entries.size) this.tabs.join();
    this.announce();
  }
}
