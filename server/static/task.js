// @ts-check
/** One picture on its own page, live until it is finished. */

import { ApiError, deleteTask, goToLogin } from "./api.js";
import { confirmDelete } from "./confirm.js";
import { Gallery } from "./gallery.js";

/** @typedef {import("./api.js").Task} Task */

const list = /** @type {HTMLElement} */ (document.getElementById("cards"));
const button = /** @type {HTMLButtonElement} */ (document.getElementById("delete"));
const problem = /** @type {HTMLElement} */ (document.getElementById("delete-error"));
const task = /** @type {Task} */ (JSON.parse(list.dataset.task ?? "{}"));

const gallery = new Gallery(list, { onRetry: takeToComposer });
gallery.add(task);
button.hidden = false;
button.addEventListener("click", remove);

/** @param {Task} failed */
function takeToComposer({ prompt }) {
  sessionStorage.setItem("draft", prompt ?? "");
  location.assign("/");
}

async function remove() {
  if (!(await confirmDelete(task.prompt ?? ""))) return;
  gallery.desk.forget(task.taskId);
  try {
    await deleteTask(task.taskId);
    location.assign("/tasks");
  } catch (error) {
    if (error instanceof ApiError && error.code === "not_signed_in") return goToLogin();
    problem.textContent = "It could not be deleted. Please try again.";
    problem.hidden = false;
  }
}
