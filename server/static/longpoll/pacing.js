// @ts-check
/** The delays between two polls: back-off after failures, spacing between replies that weren't held. */

/**
 * @typedef {object} Delay
 * @property {number} ownMs the client's own delay; waking ends it
 * @property {number} askedMs the delay that the server asked for; waking doesn't end it
 */

/** A reply that took less time than this was not held. */
const QUICK_MS = 250;
/** After this many quick replies in a row, even those with a newer version are spaced. */
const MAX_QUICK_UPDATES = 20;
const MAX_BACKOFF_MS = 10_000;

/** @type {Readonly<Delay>} */
export const NO_DELAY = { ownMs: 0, askedMs: 0 };

/**
 * Return a random delay in milliseconds: exponential back-off, full jitter.
 * @param {number} attempt the number of the failure, from 0
 * @param {() => number} [random]
 */
export function backoff(attempt, random = Math.random) {
  return random() * Math.min(1000 * 2 ** attempt, MAX_BACKOFF_MS);
}

/**
 * Wait; rejects with the signal's reason.
 * @param {number} ms
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    const timer = setTimeout(resolve, ms);
    const cancel = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    signal.addEventListener("abort", cancel, { once: true });
  });
}

/** Counts failures and quick replies, and computes the delay before the next poll. */
export class Pacing {
  /** @param {() => number} random */
  constructor(random) {
    this.random = random;
    /** Failed polls in a row. */
    this.failures = 0;
    this.quickReplies = 0;
    /** Quick replies in a row without a newer version. */
    this.quickRepeats = 0;
  }

  /**
   * Count a failure.
   * @param {number} askedMs
   * @returns {Delay}
   */
  afterFailure(askedMs) {
    const ownMs = backoff(this.failures, this.random);
    this.failures += 1;
    return { ownMs, askedMs };
  }

  /**
   * Count a reply to a poll that could have been held. A server that replies at once, again and again, gets fewer polls.
   * @param {number} tookMs
   * @param {boolean} hasUpdate whether the reply had a newer version
   * @returns {number} our own delay in ms
   */
  afterReply(tookMs, hasUpdate) {
    if (tookMs >= QUICK_MS) {
      this.quickReplies = 0;
      this.quickRepeats = 0;
      return 0;
    }
    this.quickReplies += 1;
    if (hasUpdate) {
      this.quickRepeats = 0;
      return this.quickReplies > MAX_QUICK_UPDATES ? QUICK_MS : 0;
    }
    const ownMs = backoff(this.quickRepeats, this.random);
    this.quickRepeats += 1;
    return Math.max(QUICK_MS, ownMs);
  }
}
