// @ts-check
/** Requests that create a task: sent again after a failure, but never creating two. */

import { createTask, repeatUrl } from "./api.js";
import { ApiError, isRetryable } from "./http.js";
import { backoff, sleep } from "./pacing.js";
import { randomId } from "./random_id.js";

const MAX_ATTEMPTS = 4;
/** If the server asks for a longer delay than this, the user decides when to try again. */
const MAX_RETRY_AFTER_MS = 10_000;

/** The inputs of a new task, with the idempotency key of all its requests. */
export class Submission {
  /**
   * @param {string} url
   * @param {FormData|null} form
   */
  constructor(url, form) {
    this.url = url;
    this.form = form;
    this.key = randomId();
  }

  /**
   * Whether another submission has the same inputs.
   * @param {Submission|null} other
   */
  equals(other) {
    return other !== null && this.url === other.url && haveSameEntries(this.form, other.form);
  }

  /**
   * Create the task. Retries temporary failures; the key makes the server create only one.
   * @param {boolean} waitForStart hold the reply for up to a second, until a worker has begun
   */
  async send(waitForStart) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await createTask(this.url, this.form, this.key, waitForStart);
      } catch (error) {
        const retryAfterMs = error instanceof ApiError ? error.retryAfterMs : 0;
        const mayRetry = retryAfterMs <= MAX_RETRY_AFTER_MS && attempt < MAX_ATTEMPTS - 1;
        if (!(isWorthRetrying(error) && mayRetry)) throw error;
        await sleep(Math.max(retryAfterMs, backoff(attempt)), new AbortController().signal);
      }
    }
  }
}

/**
 * Return a submission of a new task with the inputs of an earlier one, which the server has kept.
 * @param {string} taskId
 */
export function repeatedSubmission(taskId) {
  return new Submission(repeatUrl(taskId), null);
}

/**
 * Whether another attempt may succeed. A proxy that refuses the size of an upload (413) refuses it again.
 * @param {unknown} error
 */
function isWorthRetrying(error) {
  return isRetryable(error) && !(error instanceof ApiError && error.status === 413);
}

/**
 * @param {FormData|null} one
 * @param {FormData|null} other
 */
function haveSameEntries(one, other) {
  const [left, right] = [[...(one ?? [])], [...(other ?? [])]];
  return (
    left.length === right.length &&
    left.every(([name, value], index) => {
      const [otherName, otherValue] = right[index] ?? [];
      return name === otherName && value === otherValue;
    })
  );
}
