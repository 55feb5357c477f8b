// @ts-check
/** HTTP requests to this server, and the errors in which they end. */

import { pageUser } from "./page.js";

/**
 * @typedef {typeof globalThis.fetch} Fetch
 *
 * @typedef {object} Problem a problem document (RFC 9457) of this server
 * @property {string} type
 * @property {string} code
 * @property {string} [title]
 * @property {string} [detail]
 * @property {string} [instance] the request's id
 */

const PROBLEM_TYPE_PREFIX = "urn:longpoll:problem:";
/** Statuses below 500 with which our server asks for another try. */
const RETRYABLE_STATUSES = new Set([408, 425, 429]);

/** A reply outside 2xx: from our server, with its problem document, or from a proxy in front of it. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {Problem|null} problem null if the reply isn't our server's
   * @param {number} retryAfterMs
   */
  constructor(status, problem, retryAfterMs) {
    super(problem ? problem.detail || problem.title : explainProxyError(status));
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

/**
 * Return the problem document if it is our server's; proxies may send their own.
 * @param {Response} response
 * @returns {Promise<Problem|null>}
 */
async function readProblem(response) {
  if (!response.headers.get("Content-Type")?.startsWith("application/problem+json")) return null;
  try {
    const body = await response.json();
    return body?.code && body.type === PROBLEM_TYPE_PREFIX + body.code ? body : null;
  } catch {
    return null;
  }
}

/**
 * Return the sentence that the user reads when a proxy has refused the request.
 * @param {number} status
 */
function explainProxyError(status) {
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
 * Parse `Retry-After` into milliseconds; 0 if the header is missing.
 * A date is compared with the reply's `Date`, because the client's clock may be wrong.
 * @param {Headers} headers
 */
export function retryAfter(headers) {
  const value = headers.get("Retry-After")?.trim();
  if (!value) return 0;
  if (/^\d+$/u.test(value)) return Number(value) * 1000;
  const until = Date.parse(value);
  const from = Date.parse(headers.get("Date") ?? "") || Date.now();
  return Number.isNaN(until) ? 0 : Math.max(0, until - from);
}

/**
 * Whether the same request may succeed later. Network failures and every refusal by a proxy are temporary.
 * @param {unknown} error
 */
export function isRetryable(error) {
  if (!(error instanceof ApiError && error.isOurs)) return true;
  return error.status >= 500 || RETRYABLE_STATUSES.has(error.status);
}

/**
 * Fetch JSON from this server. `Expected-User` makes the server refuse the request if another user is logged in now.
 * @param {string} url
 * @param {RequestInit & {fetch?: Fetch | undefined}} [options]
 * @returns {Promise<unknown>} null for 204
 * @throws {ApiError} for every status outside 2xx
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
