// @ts-check
/** Sending a new task so that one intention never makes two. */

import { ApiError, createTask, isPassing, randomId } from "./api.js";
import { backoff, sleep } from "./poll_loop.js";

const TRIES = 4;

/** What is sent once, however often it must be said. */
export class Submission {
  /** @param {string} url @param {FormData|null} form */
  constructor(url, form) {
    this.url = url;
    this.form = form;
    this.key = randomId();
  }

  /** Whether another submission asks for the same. @param {Submission|null} other */
  equals(other) {
    return other !== null && this.url === other.url && sameEntries(this.form, other.form);
  }

  /**
   * Send, and send again while that may help; the key makes repeats harmless.
   * @param {boolean} patient whether the answer may wait a second for the work to begin
   */
  async send(patient) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await createTask(this.url, this.form, this.key, patient);
      } catch (error) {
        const asked = error instanceof ApiError ? error.retryAfterMs : 0;
        const patience = asked <= 10000 && attempt < TRIES - 1;
        if (!mayPass(error) || !patience) throw error;
        await sleep(Math.max(asked, backoff(attempt)), new AbortController().signal);
      }
    }
  }
}

/** What is too large for a proxy stays so. @param {unknown} error */
function mayPass(error) {
  return isPassing(error) && !(error instanceof ApiError && error.status === 413);
}

/** Another task made as this one was: the server knows how. @param {string} taskId */
export function submissionAgain(taskId) {
  return new Submission(`/api/generate/tasks/${encodeURIComponent(taskId)}/again`, null);
}

/** @param {FormData|null} one @param {FormData|null} other */
function sameEntries(one, other) {
  const [left, right] = [[...(one ?? [])], [...(other ?? [])]];
  return left.length === right.length && left.every(([name, value], index) => {
    const [otherName, otherValue] = right[index];
    return name === otherName && value === otherValue;
  });
}
