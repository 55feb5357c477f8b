// @ts-check
/** Ask before a picture is deleted. */

/** @param {string} prompt @returns {Promise<boolean>} */
export function confirmDelete(prompt) {
  const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("confirm"));
  const quote = /** @type {HTMLElement} */ (document.getElementById("confirm-prompt"));
  quote.textContent = prompt;
  dialog.returnValue = "keep"; // Escape leaves the last answer standing
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "delete"), { once: true });
  });
}
