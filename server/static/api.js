// @ts-check
/** What the page says to the server, and what it understands of the answers. */

/**
 * @typedef {"pending"|"processing"|"completed"|"failed"|"canceled"} TaskStatus
 * @typedef {object} Task
 * @property {string} taskId
 * @property {string} type
 * @property {TaskStatus} status
 * @property {number} version
 * @property {string|null} result
 * @property {string|null} error
 * @property {number|null} progress between 0 and 1, null while unknown
 * @property {string|null} stage
 * @property {string|null} message
 * @property {number|null} queuePosition
 * @property {number|null} etaSeconds
 * @property {number} attempt
 * @property {boolean} cancelRequested
 * @property {string} createdAt
 * @property {string|null} startedAt
 * @property {string} updatedAt
 * @property {string|null} finishedAt
 * @property {string} [prompt]
 */

/** The server refused: its problem document (RFC 9457), or what could be saved of one. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {{title?: string, detail?: string, code?: string, error?: string, instance?: string}} problem
   * @param {number} retryAfterMs
   */
  constructor(status, problem, retryAfterMs) {
    super(problem.detail || problem.error || problem.title || `The server answered ${status}`);
    this.name = "ApiError";
    this.status = status;
    this.code = problem.code ?? `http_${status}`;
    this.title = problem.title ?? problem.error ?? "";
    this.detail = problem.detail ?? "";
    this.requestId = problem.instance ?? "";
    this.retryAfterMs = retryAfterMs;
  }

  /** @param {Response} response */
  static async from(response) {
    const problem = await readProblem(response);
    return new ApiError(response.status, problem, retryAfter(response.headers));
  }
}

/** @param {Response} response */
async function readProblem(response) {
  try {
    const body = await response.json();
    return body && typeof body === "object" ? body : {};
  } catch {
    return {}; // a proxy's error page is not JSON
  }
}

/**
 * Milliseconds a `Retry-After` header asks for, 0 when there is none.
 * A date is compared with the server's own `Date`: the clock of this machine may be wrong.
 * @param {Headers} headers
 */
export function retryAfter(headers) {
  const value = headers.get("Retry-After")?.trim();
  if (!value) return 0;
  if (/^\d+$/.test(value)) return Number(value) * 1000;
  const until = Date.parse(value);
  const from = Date.parse(headers.get("Date") ?? "") || Date.now();
  return Number.isNaN(until) ? 0 : Math.max(0, until - from);
}

/** A random identifier, also where `crypto.randomUUID` is missing: plain http on a local network. */
export function randomId() {
  if (typeof crypto.randomUUID === "function") return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Whether asking again may help. @param {unknown} error */
export function isPassing(error) {
  if (!(error instanceof ApiError)) return true;
  return error.status >= 500 || [408, 425, 429].includes(error.status);
}

/**
 * Fetch JSON from this server.
 * @param {string} url
 * @param {RequestInit & {fetch?: typeof fetch}} [options]
 * @returns {Promise<any>} null for an empty reply
 * @throws {ApiError} for every answer outside 2xx
 */
export async function requestJson(url, { fetch = globalThis.fetch, headers, ...options } = {}) {
  const response = await fetch.call(globalThis, url, {
    credentials: "same-origin",
    cache: "no-store",
    headers: { Accept: "application/json", ...headers },
    ...options,
  });
  if (!response.ok) throw await ApiError.from(response);
  return response.status === 204 ? null : response.json();
}

/** Where a task's picture is. @param {string} taskId */
export function pictureUrl(taskId) {
  return `/api/generate/tasks/${encodeURIComponent(taskId)}/image`;
}

/**
 * Create a task. The key makes the same submit, sent twice, one task.
 * @param {"basic"|"advanced"} type
 * @param {FormData} form
 * @param {string} idempotencyKey
 * @param {boolean} patient whether the answer may wait a second for the work to begin
 * @returns {Promise<{taskId: string, data: Task}>}
 */
export function createTask(type, form, idempotencyKey, patient) {
  const url = type === "advanced" ? "/api/generate_advanced" : "/api/generate";
  const headers = { "Idempotency-Key": idempotencyKey, ...(patient && { Prefer: "wait=1" }) };
  return requestJson(patient ? `${url}?until=status` : url, { method: "POST", body: form, headers });
}

/** The newest tasks. @param {number} limit @returns {Promise<Task[]>} */
export async function listTasks(limit) {
  const reply = await requestJson(`/api/generate/tasks?limit=${limit}`);
  return reply.items;
}

/** Ask for a task to be canceled. @param {string} taskId @returns {Promise<Task|null>} */
export async function cancelTask(taskId) {
  const reply = await requestJson("/api/generate/cancel", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ taskId }),
  });
  return reply?.data ?? null;
}

/** Delete a task and its picture. @param {string} taskId */
export function deleteTask(taskId) {
  return requestJson(`/api/generate/tasks/${encodeURIComponent(taskId)}`, { method: "DELETE" });
}

/** Leave for the login page, to come back here afterwards. */
export function goToLogin() {
  const here = location.pathname + location.search;
  location.assign(`/login?next=${encodeURIComponent(here)}`);
}
