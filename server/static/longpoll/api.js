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

/** @typedef {typeof globalThis.fetch} Fetch */
/** @typedef {{title?: string, detail?: string, code?: string, error?: string, instance?: string}} Problem */

const OUR_PROBLEMS = "urn:longpoll:problem:";
const META = 'meta[name="longpoll-user"]';

/** The user for whom this page was made, empty if for none: somebody else may have logged in since, in another tab. */
export const pageUser = globalThis.document?.querySelector(META)?.getAttribute("content") ?? "";

/** A refusal: by our server, with its problem document (RFC 9457), or by something in front of it. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {Problem|null} problem null: it wasn't our server that refused
   * @param {number} retryAfterMs
   */
  constructor(status, problem, retryAfterMs) {
    super(problem ? problem.detail || problem.title : explainForeign(status));
    this.name = "ApiError";
    this.status = status;
    this.isOurs = problem !== null;
    this.code = problem?.code ?? `http_${status}`;
    this.title = problem?.title ?? "";
    this.detail = problem?.detail ?? "";
    this.requestId = problem?.instance ?? "";
    this.retryAfterMs = retryAfterMs;
  }

  /** @param {Response} response */
  static async from(response) {
    const problem = await readProblem(response);
    return new ApiError(response.status, problem, retryAfter(response.headers));
  }
}

/** Our problem document; proxies have 404s, 403s, and problem documents, of their own. @param {Response} response */
async function readProblem(response) {
  if (!response.headers.get("Content-Type")?.startsWith("application/problem+json")) return null;
  try {
    const body = await response.json();
    return body?.code && body.type === OUR_PROBLEMS + body.code ? body : null;
  } catch {
    return null;
  }
}

/** What a person is told of a refusal that isn't our server's. @param {number} status */
function explainForeign(status) {
  if (status === 413) {
    return (
      "A proxy in front of this server lets no upload of this size through (413). " +
      "Choose a smaller picture, or ask whoever runs this site to allow 11 MB (nginx: client_max_body_size 11m)"
    );
  }
  if (status >= 500) return `The server can't be reached behind its proxy just now (${status})`;
  return `Something in front of this server refused the request (${status}), not the server itself`;
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

/** Whether asking again may help: what is in front of our server comes and goes. @param {unknown} error */
export function isPassing(error) {
  if (!(error instanceof ApiError) || !error.isOurs) return true;
  return error.status >= 500 || [408, 425, 429].includes(error.status);
}

/**
 * Fetch JSON from this server.
 * @param {string} url
 * @param {RequestInit & {fetch?: Fetch}} [options]
 * @returns {Promise<any>} null for an empty reply
 * @throws {ApiError} for every answer outside 2xx
 */
export async function requestJson(url, { fetch = globalThis.fetch, headers, ...options } = {}) {
  const response = await fetch.call(globalThis, url, {
    credentials: "same-origin",
    cache: "no-store",
    headers: { Accept: "application/json", ...(pageUser && { "Expected-User": pageUser }), ...headers },
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
 * @param {string} url
 * @param {FormData|null} form
 * @param {string} idempotencyKey
 * @param {boolean} patient whether the answer may wait a second for the work to begin
 * @returns {Promise<{taskId: string, data: Task}>}
 */
export function createTask(url, form, idempotencyKey, patient) {
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

/** Where to log in, to come back here afterwards. */
export function loginUrl() {
  return `/login?ended&next=${encodeURIComponent(location.pathname + location.search)}`;
}
