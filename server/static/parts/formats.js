// @ts-check
/** How times, durations and the states of a task are written. */

import { isFinished } from "../longpoll/task.js";

/** @import { Task } from "../longpoll/task.js" */

const STATUS_LABELS = {
  pending: "Waiting",
  processing: "In progress",
  completed: "Ready",
  failed: "Failed",
  canceled: "Canceled",
};

const times = new Intl.DateTimeFormat(undefined, {
  month: "short",
  day: "numeric",
  hour: "numeric",
  minute: "2-digit",
});

/**
 * Show a moment in a `<time>`, in the user's time zone and language.
 * @param {HTMLTimeElement} element
 * @param {string} moment
 */
export function showTime(element, moment) {
  element.dateTime = moment;
  element.textContent = times.format(new Date(moment));
}

/** @param {number} seconds */
export function formatDuration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  const rest = Math.round(seconds % 60);
  return minutes < 10 && rest ? `${minutes} min ${rest} s` : `${minutes} min`;
}

/**
 * Format an estimate: whole minutes from one minute on.
 * @param {number} seconds
 */
export function formatTimeLeft(seconds) {
  if (seconds < 1) return "Any moment now";
  return `About ${seconds < 60 ? formatDuration(seconds) : `${Math.round(seconds / 60)} min`} left`;
}

/** @param {Task} task */
export function statusLabel(task) {
  return task.cancelRequested && !isFinished(task) ? "Canceling" : STATUS_LABELS[task.status];
}

/**
 * Return the stage and the message of an unfinished task; "" for a finished one.
 * @param {Task} task
 */
export function stageText(task) {
  if (isFinished(task)) return "";
  const stage = task.stage ? formatStage(task.stage) : "";
  return [stage, task.message].filter((part, index, all) => part && all.indexOf(part) === index).join(" · ");
}

/** @param {string} name a stage as the API names it, such as `adding_detail` */
function formatStage(name) {
  const words = name.replaceAll(/[_-]+/gu, " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
