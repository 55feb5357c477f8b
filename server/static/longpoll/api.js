// @ts-check
/** The API of tasks, one function for each request except the status polls. */

import { requestJson } from "./http.js";

/** @import { Task } from "./task.js" */

const TASKS_URL = "/api/generate/tasks";

/** @param {string} taskId */
const taskUrl = (taskId) => `${TASKS_URL}/${encodeURIComponent(taskId)}`;

/**
 * Return the URL of a task's picture.
 * @param {string} taskId
 */
export function pictureUrl(taskId) {
  return `${taskUrl(taskId)}/image`;
}

/**
 * Return the URL that creates another task with the inputs of this one.
 * @param {string} taskId
 */
export function repeatUrl(taskId) {
  return `${taskUrl(taskId)}/again`;
}

/**
 * Create a task. Requests with the same key create only one.
 * @param {string} url
 * @param {FormData|null} form
 * @param {string} idempotencyKey
 * @param {boolean} waitForStart hold the reply for up to a second, until a worker has begun
 * @returns {Promise<{taskId: string, data: Task}>}
 */
export async function createTask(url, form, idempotencyKey, waitForStart) {
  const headers = { "Idempotency-Key": idempotencyKey, ...(waitForStart && { Prefer: "wait=1" }) };
  const reply = await requestJson(waitForStart ? `${url}?until=status` : url, { method: "POST", body: form, headers });
  return /** @type {{taskId: string, data: Task}} */ (reply);
}

/**
 * Return the user's newest tasks.
 * @param {number} limit
 */
export async function listTasks(limit) {
  const reply = await requestJson(`${TASKS_URL}?limit=${limit}`);
  return /** @type {{items: Task[]}} */ (reply).items;
}

/**
 * Request that a task be canceled, and return its state afterwards.
 * @param {string} taskId
 */
export async function cancelTask(taskId) {
  const reply = await requestJson("/api/generate/cancel", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ taskId }),
  });
  return /** @type {{data?: Task}|null} */ (reply)?.data ?? null;
}

/**
 * Delete a task and its picture.
 * @param {string} taskId
 */
export async function deleteTask(taskId) {
  await requestJson(taskUrl(taskId), { method: "DELETE" });
}

/** Request the logged-in user, for the errors that the server raises if it isn't the page's. */
export async function checkUser() {
  await requestJson("/api/auth/user");
}
