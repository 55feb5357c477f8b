// @ts-check
/** The dialog before a picture is deleted. */

import { byId } from "./elements.js";

/**
 * Ask the user; true: delete it.
 * @param {string} prompt
 * @returns {Promise<boolean>}
 */
export function confirmDelete(prompt) {
  const dialog = byId("confirm", HTMLDialogElement);
  byId("confirm-prompt", HTMLElement).textContent = prompt;
  dialog.returnValue = "keep"; // Escape leaves the value of the last time
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "delete"), { once: true });
  });
}
