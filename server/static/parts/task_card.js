// @ts-check
/** One task as a card: progress while it is processed, then the picture or the reason why there is none. */

import { pictureUrl } from "../longpoll/api.js";
import { isFinished } from "../longpoll/task.js";
import { byId, partOf, showText } from "./elements.js";
import { formatDuration, formatTimeLeft, showTime, stageText, statusLabel } from "./formats.js";

/** @import { State } from "../longpoll/poll_loop.js" */
/** @import { Task } from "../longpoll/task.js" */
/** @typedef {{cancel: () => void, retry: () => void, keepWaiting: () => void}} CardActions */

/** If no poll has failed for this long, the last one is being held: the connection is back. */
const RECOVERED_MS = 3000;
/** Delays before a picture is loaded again: a proxy may refuse it for some seconds. */
const PICTURE_RETRIES_MS = [1000, 3000, 9000];
const MAX_ANNOUNCED_PROMPT = 80;
/** The card shows so much of a longer prompt; the rest is in its tooltip. */
const MAX_SHOWN_PROMPT = 120;

export const OFFLINE = "You are offline.";

/** @param {Element} root */
function findParts(root) {
  return {
    announcement: partOf(root, "announcement", HTMLElement),
    badge: partOf(root, "badge", HTMLElement),
    cancel: partOf(root, "cancel", HTMLButtonElement),
    connection: partOf(root, "connection", HTMLElement),
    created: partOf(root, "created", HTMLTimeElement),
    details: partOf(root, "details", HTMLAnchorElement),
    download: partOf(root, "download", HTMLAnchorElement),
    error: partOf(root, "error", HTMLElement),
    facts: partOf(root, "facts", HTMLElement),
    keepWaiting: partOf(root, "keepWaiting", HTMLButtonElement),
    percent: partOf(root, "percent", HTMLElement),
    picture: partOf(root, "picture", HTMLImageElement),
    pictureLink: partOf(root, "pictureLink", HTMLAnchorElement),
    pictureNote: partOf(root, "pictureNote", HTMLElement),
    progress: partOf(root, "progress", HTMLProgressElement),
    progressRow: partOf(root, "progressRow", HTMLElement),
    prompt: partOf(root, "prompt", HTMLElement),
    retry: partOf(root, "retry", HTMLButtonElement),
    stage: partOf(root, "stage", HTMLElement),
    type: partOf(root, "type", HTMLElement),
    waiting: partOf(root, "waiting", HTMLElement),
  };
}

/** @returns {HTMLElement} */
function cloneTemplate() {
  const { content } = byId("task-card", HTMLTemplateElement);
  return /** @type {HTMLElement} */ (content.firstElementChild?.cloneNode(true));
}

export class TaskCard {
  /**
   * @param {Task} task
   * @param {CardActions} actions
   */
  constructor(task, actions) {
    this.element = cloneTemplate();
    this.parts = findParts(this.element);
    this.parts.cancel.addEventListener("click", actions.cancel);
    this.parts.retry.addEventListener("click", actions.retry);
    this.parts.keepWaiting.addEventListener("click", actions.keepWaiting);
    this.prompt = task.prompt ?? "";
    this.task = task;
    this.receivedAt = 0;
    /** @type {number|undefined} */
    this.recoveryTimer = undefined;
    this.showInputs(task);
    this.showState(task);
  }

  /**
   * Show what never changes.
   * @param {Task} task
   */
  showInputs(task) {
    const { parts, prompt } = this;
    parts.prompt.textContent = prompt;
    parts.prompt.title = prompt.length > MAX_SHOWN_PROMPT ? prompt : "";
    parts.type.textContent = task.type === "advanced" ? "Advanced" : "Basic";
    parts.details.href = `/tasks/${encodeURIComponent(task.taskId)}`;
    parts.details.setAttribute("aria-label", `Details of “${prompt}”`);
    parts.cancel.setAttribute("aria-label", `Cancel “${prompt}”`);
    showTime(parts.created, task.createdAt);
  }

  /**
   * Show a newer state.
   * @param {Task} task
   */
  update(task) {
    this.announce(task);
    this.showState(task);
  }

  /** @param {Task} task */
  showState(task) {
    this.task = task;
    this.receivedAt = performance.now();
    this.element.dataset.status = task.status;
    this.showTexts(task);
    this.showProgress(task);
    this.showActions(task);
    this.showConnection("");
    this.tick();
    if (task.status === "completed") this.showPicture(task);
  }

  /** @param {Task} task */
  showTexts(task) {
    const { badge, stage, error, waiting } = this.parts;
    badge.textContent = statusLabel(task);
    badge.dataset.status = task.status;
    stage.textContent = stageText(task);
    stage.hidden = isFinished(task);
    showText(error, task.status === "failed" ? task.error || "The picture could not be made." : "");
    waiting.hidden = isFinished(task);
    if (task.status === "failed") this.showPictureNote("No picture");
    if (task.status === "canceled") this.showPictureNote("Canceled");
  }

  /** @param {Task} task */
  showProgress(task) {
    const { progressRow, progress, percent } = this.parts;
    progressRow.hidden = isFinished(task);
    if (typeof task.progress === "number") {
      progress.value = task.progress;
      percent.textContent = `${Math.round(task.progress * 100)} %`;
    } else {
      progress.removeAttribute("value");
      percent.textContent = "";
    }
  }

  /** @param {Task} task */
  showActions(task) {
    const { cancel, retry, download, keepWaiting } = this.parts;
    cancel.hidden = isFinished(task);
    cancel.disabled = task.cancelRequested;
    cancel.textContent = task.cancelRequested ? "Canceling…" : "Cancel";
    retry.hidden = task.status !== "failed" && task.status !== "canceled";
    download.hidden = task.status !== "completed";
    download.href = pictureUrl(task.taskId);
    keepWaiting.hidden = true;
  }

  /** Update what depends on the current time; called each second while the task is unfinished. */
  tick() {
    const facts = isFinished(this.task) ? this.finalFacts(this.task) : this.currentFacts(this.task);
    this.parts.facts.textContent = facts.join(" · ");
  }

  /** @param {Task} task */
  currentFacts({ status, queuePosition, etaSeconds, attempt }) {
    const facts = [];
    if (status === "pending" && typeof queuePosition === "number") {
      facts.push(queuePosition <= 1 ? "Next in the queue" : `Number ${queuePosition} in the queue`);
    } else if (status === "pending") facts.push("In the queue");
    if (typeof etaSeconds === "number") {
      facts.push(formatTimeLeft(etaSeconds - (performance.now() - this.receivedAt) / 1000));
    }
    if (attempt > 1) facts.push(`Attempt ${attempt}`);
    return facts;
  }

  /** @param {Task} task */
  finalFacts({ startedAt, finishedAt, status }) {
    if (status !== "completed" || !startedAt || !finishedAt) return [];
    return [`Made in ${formatDuration((Date.parse(finishedAt) - Date.parse(startedAt)) / 1000)}`];
  }

  /**
   * Have screen readers announce a new status or stage, but not each percent.
   * @param {Task} task
   */
  announce(task) {
    const before = this.task;
    if (statusLabel(before) === statusLabel(task) && before.stage === task.stage) return;
    const text = stageText(task) || statusLabel(task);
    this.parts.announcement.textContent = `${text}: ${this.prompt.slice(0, MAX_ANNOUNCED_PROMPT)}`;
  }

  /** @param {Task} task */
  showPicture({ taskId }) {
    const { picture, pictureLink } = this.parts;
    pictureLink.href = pictureUrl(taskId);
    pictureLink.hidden = false;
    if (picture.getAttribute("src")) return;
    picture.alt = this.prompt;
    picture.addEventListener("load", () => picture.classList.add("is-ready"));
    const retries = [...PICTURE_RETRIES_MS];
    const load = () => {
      picture.src = pictureUrl(taskId);
    };
    picture.addEventListener("error", () => {
      const delayMs = retries.shift();
      if (delayMs === undefined) this.showPictureNote("The picture could not be loaded");
      else setTimeout(load, delayMs);
    });
    load();
  }

  /** @param {string} text in place of the picture */
  showPictureNote(text) {
    showText(this.parts.pictureNote, text);
    this.parts.pictureLink.hidden = true;
  }

  /**
   * Show whether the polls succeed.
   * @param {State} state
   */
  showPollState({ name, attempt }) {
    clearTimeout(this.recoveryTimer);
    if (name === "retrying") {
      this.showConnection(navigator.onLine ? "Can't reach the server. Trying again…" : OFFLINE);
    } else if (attempt === 0) this.showConnection("");
    else this.recoveryTimer = setTimeout(() => this.showConnection(""), RECOVERED_MS);
  }

  /** @param {string} text */
  showConnection(text) {
    showText(this.parts.connection, text);
  }

  /**
   * Show that the task isn't polled any more, with a button that polls it again.
   * @param {string} reason
   */
  showStalled(reason) {
    this.showConnection(reason);
    this.parts.announcement.textContent = reason;
    this.parts.keepWaiting.hidden = false;
  }

  /**
   * Show that the task doesn't exist any more.
   * @param {string} reason
   */
  showGone(reason) {
    clearTimeout(this.recoveryTimer);
    const { announcement, cancel, details, keepWaiting, progressRow, stage, facts, waiting, badge } = this.parts;
    this.element.dataset.status = "gone";
    badge.textContent = "Gone";
    badge.dataset.status = "canceled";
    this.showConnection("");
    this.showPictureNote(reason);
    for (const part of [cancel, details, keepWaiting, progressRow, stage, facts, waiting]) part.hidden = true;
    announcement.textContent = reason;
  }

  /**
   * Show that something the user asked for has failed.
   * @param {string} reason
   */
  showProblem(reason) {
    showText(this.parts.error, reason);
  }
}
