// @ts-check
/** One task as a card: progress while it is made, then the picture or the reason why not. */

import { pictureUrl } from "../longpoll/api.js";
import { isFinished } from "../longpoll/poll_loop.js";

/** @typedef {import("../longpoll/api.js").Task} Task */
/** @typedef {{cancel: () => void, retry: () => void, keepWaiting: () => void}} Actions */

/** A poll that has not failed for so long is being held: the connection is back. */
const RECOVERED_MS = 3000;

/** What is in front of the server may have no picture for some seconds. */
const PICTURE_PAUSES_MS = [1000, 3000, 9000];

export const OFFLINE = "You are offline.";

const LABELS = {
  pending: "Waiting",
  processing: "In progress",
  completed: "Ready",
  failed: "Failed",
  canceled: "Canceled",
};

const times = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });

/** Show a `<time>` in the reader's zone and language. @param {HTMLTimeElement} element @param {string} moment */
export function showTime(element, moment) {
  element.dateTime = moment;
  element.textContent = times.format(new Date(moment));
}

/** Seconds as people say them. @param {number} seconds */
function spellDuration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  const rest = Math.round(seconds % 60);
  return minutes < 10 && rest ? `${minutes} min ${rest} s` : `${minutes} min`;
}

/** @param {number} seconds an estimate: no more exact than it is */
function spellRest(seconds) {
  if (seconds < 1) return "Any moment now";
  return `About ${seconds < 60 ? spellDuration(seconds) : `${Math.round(seconds / 60)} min`} left`;
}

/** @param {string} name a stage as the server calls it */
function spellStage(name) {
  const words = name.replaceAll(/[_-]+/g, " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** @param {Task} task */
function labelOf(task) {
  const canceling = task.cancelRequested && !isFinished(task);
  return canceling ? "Canceling" : LABELS[task.status];
}

/** @param {Task} task */
function stageOf(task) {
  if (isFinished(task)) return "";
  const stage = task.stage ? spellStage(task.stage) : "";
  return [stage, task.message].filter((part, index, all) => part && all.indexOf(part) === index).join(" · ");
}

export class Card {
  /** @param {Task} task @param {Actions} actions */
  constructor(task, actions) {
    const template = /** @type {HTMLTemplateElement} */ (document.getElementById("task-card"));
    const copy = /** @type {DocumentFragment} */ (template.content.cloneNode(true));
    this.element = /** @type {HTMLElement} */ (copy.firstElementChild);
    /** @type {Record<string, any>} */
    this.parts = {};
    this.element.querySelectorAll("[data-part]").forEach((part) => {
      this.parts[/** @type {HTMLElement} */ (part).dataset.part ?? ""] = part;
    });
    this.parts.cancel.addEventListener("click", actions.cancel);
    this.parts.retry.addEventListener("click", actions.retry);
    this.parts.keepWaiting.addEventListener("click", actions.keepWaiting);
    this.prompt = task.prompt ?? "";
    this.showOrigin(task);
    this.show(task);
  }

  /** What never changes. @param {Task} task */
  showOrigin(task) {
    const { parts, prompt } = this;
    parts.prompt.textContent = prompt;
    parts.prompt.title = prompt.length > 120 ? prompt : "";
    parts.type.textContent = task.type === "advanced" ? "Advanced" : "Basic";
    parts.details.href = `/tasks/${encodeURIComponent(task.taskId)}`;
    parts.details.setAttribute("aria-label", `Details of “${prompt}”`);
    parts.cancel.setAttribute("aria-label", `Cancel “${prompt}”`);
    showTime(parts.created, task.createdAt);
  }

  /** Show a newer state. @param {Task} task */
  show(task) {
    this.announce(task);
    this.task = task;
    this.receivedAt = performance.now();
    this.element.dataset.status = task.status;
    this.showText(task);
    this.showProgress(task);
    this.showActions(task);
    this.showConnection("");
    this.tick();
    if (task.status === "completed") this.showPicture(task);
  }

  /** @param {Task} task */
  showText(task) {
    const { badge, stage, error, waiting } = this.parts;
    badge.textContent = labelOf(task);
    badge.dataset.status = task.status;
    stage.textContent = stageOf(task);
    stage.hidden = isFinished(task);
    error.textContent = task.status === "failed" ? task.error || "The picture could not be made." : "";
    error.hidden = task.status !== "failed";
    waiting.hidden = isFinished(task);
    const ended = task.status === "failed" || task.status === "canceled";
    if (ended) this.showPictureNote(task.status === "failed" ? "No picture" : "Canceled");
  }

  /** @param {Task} task */
  showProgress(task) {
    const { progressRow, progress, percent } = this.parts;
    progressRow.hidden = isFinished(task);
    const known = typeof task.progress === "number";
    if (known) progress.value = task.progress;
    else progress.removeAttribute("value");
    percent.textContent = known ? `${Math.round((task.progress ?? 0) * 100)} %` : "";
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

  /** What depends on the time that passes; called each second while the task is unfinished. */
  tick() {
    const { task } = this;
    const facts = task ? (isFinished(task) ? this.lastFacts(task) : this.liveFacts(task)) : [];
    this.parts.facts.textContent = facts.join(" · ");
  }

  /** @param {Task} task */
  liveFacts(task) {
    const facts = [];
    const { queuePosition, etaSeconds, attempt } = task;
    if (task.status === "pending" && queuePosition !== null && queuePosition !== undefined) {
      facts.push(queuePosition <= 1 ? "Next in the queue" : `Number ${queuePosition} in the queue`);
    } else if (task.status === "pending") facts.push("In the queue");
    if (typeof etaSeconds === "number") {
      const left = etaSeconds - (performance.now() - (this.receivedAt ?? 0)) / 1000;
      facts.push(spellRest(left));
    }
    if (attempt > 1) facts.push(`Attempt ${attempt}`);
    return facts;
  }

  /** @param {Task} task */
  lastFacts({ startedAt, finishedAt, status }) {
    if (status !== "completed" || !startedAt || !finishedAt) return [];
    return [`Made in ${spellDuration((Date.parse(finishedAt) - Date.parse(startedAt)) / 1000)}`];
  }

  /** Say aloud a new status or stage, not each percent. @param {Task} task */
  announce(task) {
    const before = this.task;
    if (before && labelOf(before) === labelOf(task) && before.stage === task.stage) return;
    const news = isFinished(task) ? labelOf(task) : stageOf(task) || labelOf(task);
    if (before) this.parts.announcement.textContent = `${news}: ${this.prompt.slice(0, 80)}`;
  }

  /** @param {Task} task */
  showPicture({ taskId }) {
    const { picture, pictureLink } = this.parts;
    pictureLink.href = pictureUrl(taskId);
    pictureLink.hidden = false;
    if (picture.getAttribute("src")) return;
    picture.alt = this.prompt;
    picture.addEventListener("load", () => picture.classList.add("is-ready"));
    const pauses = [...PICTURE_PAUSES_MS];
    picture.addEventListener("error", () => {
      const pause = pauses.shift();
      if (pause === undefined) this.showPictureNote("The picture could not be loaded");
      else setTimeout(() => (picture.src = pictureUrl(taskId)), pause);
    });
    picture.src = pictureUrl(taskId);
  }

  /** @param {string} text */
  showPictureNote(text) {
    this.parts.pictureNote.textContent = text;
    this.parts.pictureNote.hidden = false;
    this.parts.pictureLink.hidden = true;
  }

  /** @param {import("../longpoll/poll_loop.js").State} state */
  showState({ name, attempt }) {
    clearTimeout(this.recovering);
    if (name === "retrying") {
      this.showConnection(navigator.onLine ? "Can't reach the server. Trying again…" : OFFLINE);
    } else if (attempt === 0) this.showConnection("");
    else this.recovering = setTimeout(() => this.showConnection(""), RECOVERED_MS);
  }

  /** @param {string} text */
  showConnection(text) {
    this.parts.connection.textContent = text;
    this.parts.connection.hidden = !text;
  }

  /** Nobody asks for this task any more; the person may. @param {string} reason */
  showStalled(reason) {
    this.showConnection(reason);
    this.parts.announcement.textContent = reason;
    this.parts.keepWaiting.hidden = false;
  }

  /** The task is no more. @param {string} reason */
  showGone(reason) {
    clearTimeout(this.recovering);
    const { announcement, cancel, details, keepWaiting, progressRow, stage, facts, waiting, badge } = this.parts;
    this.element.dataset.status = "gone";
    badge.textContent = "Gone";
    badge.dataset.status = "canceled";
    this.showConnection("");
    this.showPictureNote(reason);
    for (const part of [cancel, details, keepWaiting, progressRow, stage, facts, waiting]) part.hidden = true;
    announcement.textContent = reason;
  }

  /** Something the person asked for did not work. @param {string} reason */
  showProblem(reason) {
    this.parts.error.textContent = reason;
    this.parts.error.hidden = !reason;
  }
}
