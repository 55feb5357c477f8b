// @ts-check
/** One picture on its own page, live until it is finished. */

import { deleteTask } from "../longpoll/api.js";
import { confirmDelete } from "../parts/confirm.js";
import { Gallery } from "../parts/gallery.js";
import { takeRefusal } from "../parts/identity.js";
import { submissionAgain } from "../longpoll/submission.js";

/** @typedef {import("../longpoll/api.js").Task} Task */

const list = /** @type {HTMLElement} */ (document.getElementById("cards"));
const button = /** @type {HTMLButtonElement} */ (document.getElementById("delete"));
const problem = /** @type {HTMLElement} */ (document.getElementById("delete-error"));
const task = /** @type {Task} */ (JSON.parse(list.dataset.task ?? "{}"));

const gallery = new Gallery(list, { onRetry: retry });
gallery.add(task);
button.hidden = false;
button.addEventListener("click", remove);

async function retry() {
  problem.hidden = true;
  try {
    const { taskId } = await submissionAgain(task.taskId).send(false);
    location.assign(`/tasks/${encodeURIComponent(taskId)}`);
  } catch (error) {
    takeError(error, /** @type {Error} */ (error).message);
  }
}

async function remove() {
  if (!(await confirmDelete(task.prompt ?? ""))) return;
  gallery.desk.forget(task.taskId);
  try {
    await deleteTask(task.taskId);
    location.assign("/tasks");
  } catch (error) {
    takeError(error, "It could not be deleted. Please try again.");
  }
}

/** @param {unknown} error @param {string} text */
function takeError(error, text) {
  if (takeRefusal(error)) return;
  problem.textContent = text;
  problem.hidden = false;
}
