// @ts-check
/** The page of one task, updated until it is finished. */

import { deleteTask } from "../longpoll/api.js";
import { repeatedSubmission } from "../longpoll/submission.js";
import { confirmDelete } from "../parts/confirm_delete.js";
import { byId, showText } from "../parts/elements.js";
import { Gallery } from "../parts/gallery.js";
import { handleLoginError } from "../parts/session.js";

/** @import { Task } from "../longpoll/task.js" */

const list = byId("cards", HTMLElement);
const button = byId("delete", HTMLButtonElement);
const problem = byId("delete-error", HTMLElement);
/** @type {Task} */
const task = JSON.parse(list.dataset.task ?? "{}");

const gallery = new Gallery(list, retry);
gallery.add(task);
button.hidden = false;
button.addEventListener("click", confirmAndDelete);

async function retry() {
  problem.hidden = true;
  try {
    const { taskId } = await repeatedSubmission(task.taskId).send(false);
    location.assign(`/tasks/${encodeURIComponent(taskId)}`);
  } catch (error) {
    showError(error, /** @type {Error} */ (error).message);
  }
}

async function confirmAndDelete() {
  if (!(await confirmDelete(task.prompt ?? ""))) return;
  gallery.feed.unwatch(task.taskId);
  try {
    await deleteTask(task.taskId);
    location.assign("/tasks");
  } catch (error) {
    showError(error, "It could not be deleted. Please try again.");
  }
}

/**
 * @param {unknown} error
 * @param {string} text
 */
function showError(error, text) {
  if (!handleLoginError(error)) showText(problem, text);
}
