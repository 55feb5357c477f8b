// @ts-check
/** The list of all tasks: shows local times, and deletes tasks. */

import { deleteTask } from "../longpoll/api.js";
import { ApiError } from "../longpoll/http.js";
import { confirmDelete } from "../parts/confirm_delete.js";
import { byId, showText } from "../parts/elements.js";
import { showTime } from "../parts/formats.js";
import { handleLoginError } from "../parts/session.js";

const problem = byId("history-error", HTMLElement);
const status = byId("history-status", HTMLElement);

for (const time of document.querySelectorAll("time")) showTime(time, time.dateTime);
for (const button of document.querySelectorAll(".history-delete")) {
  const item = /** @type {HTMLElement} */ (button.closest(".history-item"));
  button.addEventListener("click", () => confirmAndDelete(item));
}

/** @param {HTMLElement} item */
async function confirmAndDelete(item) {
  const { taskId = "", prompt = "" } = item.dataset;
  if (!(await confirmDelete(prompt))) return;
  problem.hidden = true;
  try {
    await deleteTask(taskId);
    removeItem(item);
  } catch (error) {
    handleDeleteError(error, item);
  }
}

/** @param {HTMLElement} item */
function removeItem(item) {
  const neighbour = item.nextElementSibling ?? item.previousElementSibling;
  const focus = /** @type {HTMLElement|null} */ (neighbour?.querySelector(".history-delete") ?? null);
  item.remove();
  status.textContent = "Deleted.";
  if (focus) focus.focus();
  else location.reload(); // this page of the list is empty: older tasks may fill it
}

/**
 * @param {unknown} error
 * @param {HTMLElement} item
 */
function handleDeleteError(error, item) {
  if (handleLoginError(error)) return;
  if (error instanceof ApiError && error.code === "task_not_found") removeItem(item);
  else showText(problem, "It could not be deleted. Please try again.");
}
