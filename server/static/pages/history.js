// @ts-check
/** The list of all tasks: local times, and deleting. */

import { ApiError, deleteTask } from "../longpoll/api.js";
import { showTime } from "../parts/card.js";
import { confirmDelete } from "../parts/confirm.js";
import { takeRefusal } from "../parts/identity.js";

const problem = /** @type {HTMLElement} */ (document.getElementById("history-error"));
const status = /** @type {HTMLElement} */ (document.getElementById("history-status"));

document.querySelectorAll("time").forEach((time) => showTime(time, time.dateTime));
document.querySelectorAll(".history-delete").forEach((button) => {
  const item = /** @type {HTMLElement} */ (button.closest(".history-item"));
  button.addEventListener("click", () => remove(item));
});

/** @param {HTMLElement} item */
async function remove(item) {
  const { taskId = "", prompt = "" } = item.dataset;
  if (!(await confirmDelete(prompt))) return;
  problem.hidden = true;
  try {
    await deleteTask(taskId);
    drop(item);
  } catch (error) {
    takeError(error, item);
  }
}

/** @param {HTMLElement} item */
function drop(item) {
  const neighbour = item.nextElementSibling ?? item.previousElementSibling;
  const focus = /** @type {HTMLElement|null} */ (neighbour?.querySelector(".history-delete") ?? null);
  item.remove();
  status.textContent = "Deleted.";
  if (focus) focus.focus();
  else location.reload(); // the page is empty: an older one may follow
}

/** @param {unknown} error @param {HTMLElement} item */
function takeError(error, item) {
  if (takeRefusal(error)) return;
  if (error instanceof ApiError && error.code === "task_not_found") return drop(item);
  problem.textContent = "It could not be deleted. Please try again.";
  problem.hidden = false;
}
