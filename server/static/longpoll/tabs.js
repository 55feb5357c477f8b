// @ts-check
/**
 * The tabs of one browser that show this site to one user: they exchange messages, and elect a leader.
 *
 * The tab that holds the Web Lock leads; the browser gives the lock of a closed or crashed tab to the next in its queue.
 * Where there are no Web Locks (plain http on a local network) each tab leads itself.
 */

/** @import { TabMessage } from "./messages.js" */
/**
 * @typedef {object} TabEvents
 * @property {(data: unknown) => void} onMessage another tab has sent this
 * @property {() => void} onLead this tab leads from now on
 * @property {() => void} onRetire another tab has taken the lead
 */

/** Name of the channel and the lock. The number changes with the messages: tabs loaded before an update hear their own. */
const NAME = "longpoll-feed-3";

export class Tabs {
  /**
   * @param {string} user only tabs of the same user exchange messages
   * @param {TabEvents} events
   */
  constructor(user, events) {
    this.name = `${NAME}-${user}`;
    this.events = events;
    /** @type {BroadcastChannel|null} */
    this.channel = null;
    /** @type {AbortController|null} aborted when this tab leaves, null before it joins */
    this.membership = null;
    /** Aborts a request for the lock that hasn't been granted. */
    this.lockRequest = new AbortController();
  }

  /** Exchange messages with the other tabs, and queue for the lock. */
  join() {
    if (this.membership) return;
    this.membership = new AbortController();
    if (!navigator.locks || !globalThis.BroadcastChannel) {
      this.events.onLead();
      return;
    }
    this.channel = new BroadcastChannel(this.name);
    this.channel.addEventListener("message", ({ data }) => this.events.onMessage(data));
    this.queueForLock();
  }

  /** Close the channel and release the lock. */
  leave() {
    const { membership } = this;
    this.membership = null;
    this.lockRequest.abort();
    membership?.abort();
    this.channel?.close();
    this.channel = null;
  }

  /**
   * Send a message to all other tabs.
   * @param {TabMessage} message
   */
  send(message) {
    this.channel?.postMessage(message);
  }

  /** Lead as soon as no other tab does. */
  queueForLock() {
    this.lockRequest = new AbortController();
    this.requestLock({ signal: this.lockRequest.signal });
  }

  /** Lead at once: the leader doesn't reply, probably because the browser has frozen its tab. */
  stealLock() {
    if (!this.channel) return;
    this.lockRequest.abort();
    this.requestLock({ steal: true });
  }

  /** @param {LockOptions} options */
  async requestLock(options) {
    const { membership } = this;
    let hasLed = false;
    const whileLeading = () => {
      if (!membership || membership.signal.aborted) return Promise.resolve();
      hasLed = true;
      this.events.onLead();
      return new Promise((resolve) => membership.signal.addEventListener("abort", resolve, { once: true }));
    };
    try {
      await navigator.locks.request(this.name, options, whileLeading);
    } catch (error) {
      if (/** @type {Error} */ (error).name !== "AbortError") {
        this.events.onLead();
        return;
      }
      // Either this tab has left or replaced its request, or another tab has stolen the lock.
      if (!hasLed || membership !== this.membership) return;
      this.events.onRetire();
      this.queueForLock();
    }
  }
}
