// @ts-check

/** A task is no longer polled although it hasn't finished. `code` says why; `status` is the reply's, or 0. */
export class PollError extends Error {
  /**
   * @param {string} code
   * @param {number} status
   * @param {string} message
   */
  constructor(code, status, message) {
    super(message);
    this.name = "PollError";
    this.code = code;
    this.status = status;
  }
}
