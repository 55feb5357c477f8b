// @ts-check
/**
 * Notices that the page's user has logged out, or that another user has logged in.
 *
 * A page may stay open for longer than a login: in another tab somebody logs out, or logs in as another user. Each page
 * that loads sends its user to all open tabs. A tab that misses this message finds out by its next request: the server
 * refuses a request that expects another user than the one who is logged in.
 */

import { checkUser } from "../longpoll/api.js";
import { pageUser } from "../longpoll/page.js";
import { forgetDraft } from "./draft.js";

/** @typedef {{user: string, left: boolean}} PageLoaded `user`: "" for none; `left`: loaded by a logout */

const CHANNEL_NAME = "longpoll-identity-1";
/** Storage key that is set while a logout loads the next page. */
const LEFT = "left";
/** A tab that becomes visible again within this time doesn't check the login again. */
const CHECK_INTERVAL_MS = 5000;

/** Dispatches `restored` when the page's user is logged in again. */
export const sessionEvents = new EventTarget();

let loggedOut = false;
let checkedAt = Number.NEGATIVE_INFINITY;

/** Whether the page's user isn't logged in any more. */
export function isLoggedOut() {
  return loggedOut;
}

/**
 * Handle an error about who is logged in.
 * @param {unknown} error
 * @returns {boolean} whether it was one
 */
export function handleLoginError(error) {
  const { code } = /** @type {{code?: unknown}} */ (error ?? {});
  if (code === "not_signed_in") setLoggedOut(true);
  if (code === "other_user") openForOtherUser();
  return code === "not_signed_in" || code === "other_user";
}

/** @param {boolean} now */
function setLoggedOut(now) {
  const before = loggedOut;
  loggedOut = now;
  const notice = document.getElementById("session-ended");
  notice?.querySelector("a")?.setAttribute("href", loginUrl());
  if (notice) notice.hidden = !now;
  if (before && !now) sessionEvents.dispatchEvent(new Event("restored"));
}

/** Return the URL of the login form that leads back to this page. */
function loginUrl() {
  return `/login?ended&next=${encodeURIComponent(location.pathname + location.search)}`;
}

/** Another user is logged in: load the page for them. The page of a task isn't theirs, so load the list instead. */
function openForOtherUser() {
  loggedOut = true;
  replacePage(location.pathname.startsWith("/tasks/") ? "/tasks" : undefined);
}

/**
 * Load a page in place of this one; unlike `location.reload`, never by POST.
 * @param {string} [url]
 */
function replacePage(url = location.pathname + location.search) {
  location.replace(url);
}

/**
 * Handle a message of a page that has loaded in another tab; ignore one that another version of the page has sent.
 * @param {unknown} data
 */
function receive(data) {
  const { user, left } = /** @type {Partial<PageLoaded>} */ (data ?? {});
  if (typeof user === "string" && typeof left === "boolean") handlePageLoaded({ user, left });
}

/** @param {PageLoaded} page */
function handlePageLoaded({ user, left }) {
  const isLoginForm = ["/login", "/register"].includes(location.pathname);
  if (!pageUser) {
    if (user && isLoginForm) replacePage();
  } else if (user === pageUser) setLoggedOut(false);
  else if (user) openForOtherUser();
  else if (left) handleLogout();
  else checkLogin();
}

/** The page's user has logged out in another tab. The draft isn't kept, as it is when a session has expired. */
function handleLogout() {
  loggedOut = false; // a held poll may have been refused before
  forgetDraft();
  replacePage();
}

/** Request from the server who is logged in. */
async function checkLogin() {
  if (!pageUser) return;
  checkedAt = performance.now();
  try {
    await checkUser();
    setLoggedOut(false);
  } catch (error) {
    handleLoginError(error);
  }
}

/** The page comes out of the back/forward cache: don't show it after a logout. */
async function checkRestoredPage() {
  await checkLogin();
  if (loggedOut) replacePage();
}

function exchangeMessages() {
  if (!globalThis.BroadcastChannel) return;
  const channel = new BroadcastChannel(CHANNEL_NAME);
  channel.addEventListener("message", ({ data }) => receive(data));
  channel.postMessage({ user: pageUser, left: !pageUser && sessionStorage.getItem(LEFT) !== null });
}

function listen() {
  exchangeMessages();
  sessionStorage.removeItem(LEFT);
  for (const form of document.querySelectorAll("form[action='/api/auth/logout'], form[data-leaves]")) {
    form.addEventListener("submit", () => {
      sessionStorage.setItem(LEFT, "yes");
      forgetDraft();
    });
  }
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && performance.now() - checkedAt > CHECK_INTERVAL_MS) checkLogin();
  });
  window.addEventListener("pageshow", ({ persisted }) => {
    if (persisted) checkRestoredPage();
  });
}

listen();
