// @ts-check
/** What the client reads from the page it runs in. No other module of this folder touches the DOM. */

/**
 * @typedef {object} PageListener
 * @property {() => void} wake the page is visible again, or the network is back
 * @property {() => void} suspend the page is left, perhaps into the back/forward cache
 * @property {() => void} resume the page is shown, perhaps from that cache
 */

const USER_META = 'meta[name="longpoll-user"]';

/** Id of the user for whom the page was rendered, or "". Another tab may have changed the login since. */
export const pageUser = globalThis.document?.querySelector(USER_META)?.getAttribute("content") ?? "";

/**
 * Call the listener on the page's events.
 * @param {PageListener} listener
 * @returns {() => void} stops listening
 */
export function listenToPage(listener) {
  const listening = new AbortController();
  const options = { signal: listening.signal };
  const wakeIfVisible = () => {
    if (document.visibilityState === "visible") listener.wake();
  };
  document.addEventListener("visibilitychange", wakeIfVisible, options);
  window.addEventListener("online", () => listener.wake(), options);
  window.addEventListener("pagehide", () => listener.suspend(), options);
  window.addEventListener("pageshow", () => listener.resume(), options);
  return () => listening.abort();
}
