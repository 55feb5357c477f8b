// @ts-check
/**
 * The tabs of one browser that show this site to one user: they hear each other, and one of them leads.
 *
 * Whoever has the Web Lock leads; a tab that closes or crashes gives it back, and the next in the queue
 * has it. Where there are no Web Locks (plain http on a local network) each tab is its own leader.
 */

/** With the number of what the tabs say to each other: after an update, old and new ones don't mix. */
const NAME = "longpoll-desk-2";

export class Tabs {
  /**
   * @param {string} user another user's tabs are not spoken to
   * @param {object} events
   * @param {(message: any) => void} events.hear a message of another tab
   * @param {() => void} events.lead this tab leads from now on
   * @param {() => void} events.retire and now no more
   */
  constructor(user, events) {
    this.name = `${NAME}-${user}`;
    this.events = events;
    /** @type {BroadcastChannel|null} */
    this.channel = null;
    /** @type {AbortController|null} as long as this tab takes part */
    this.membership = null;
    this.candidacy = new AbortController();
  }

  /** Take part: hear the others, and lead when it is this tab's turn. */
  join() {
    if (this.membership) return;
    this.membership = new AbortController();
    if (!navigator.locks || !globalThis.BroadcastChannel) return this.events.lead();
    this.channel = new BroadcastChannel(this.name);
    this.channel.addEventListener("message", ({ data }) => this.events.hear(data));
    this.queue();
  }

  /** Take part no more, and let another one lead. */
  leave() {
    const { membership } = this;
    this.membership = null;
    this.candidacy.abort();
    membership?.abort();
    this.channel?.close();
    this.channel = null;
  }

  /** Tell all other tabs. @param {object} message */
  tell(message) {
    this.channel?.postMessage(message);
  }

  /** Wait until nobody else leads. */
  queue() {
    this.candidacy = new AbortController();
    this.request({ signal: this.candidacy.signal });
  }

  /** Lead now: whoever leads says nothing, as a tab that the browser has frozen. */
  usurp() {
    if (!this.channel) return;
    this.candidacy.abort();
    this.request({ steal: true });
  }

  /** @param {LockOptions} options */
  async request(options) {
    const { membership } = this;
    let led = false;
    const reign = () => {
      if (!membership || membership.signal.aborted) return;
      led = true;
      this.events.lead();
      return new Promise((resolve) => membership.signal.addEventListener("abort", resolve, { once: true }));
    };
    try {
      await navigator.locks.request(this.name, options, reign);
    } catch (error) {
      if (/** @type {Error} */ (error).name !== "AbortError") return this.events.lead();
      // We have left, or stand elsewhere in the queue; or another tab took the lock from us.
      if (!led || membership !== this.membership) return;
      this.events.retire();
      this.queue();
    }
  }
}
