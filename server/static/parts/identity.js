// @ts-check
/**
 * Whose page this is, and whether they are still logged in.
 *
 * A page outlives a login: in another tab somebody may log out, or log in as somebody else. Each page says on a channel
 * for whom it was made, and all tabs hear. Who missed that finds out by asking: the server refuses whatever is asked for
 * another user than the one who is logged in.
 */

import { loginUrl, pageUser, requestJson } from "../longpoll/api.js";
import { forgetDraft } from "./draft.js";

const NAME = "longpoll-identity-1";
const LEFT = "left";
/** Somebody who looks at this tab again and again doesn't ask each time. */
const LOOK_MS = 5000;

/** Dispatches `return` when this page's user is logged in again. */
export const identity = new EventTarget();

let lost = false;
let lookedAt = -Infinity;

/** Whether this page's user isn't logged in any more. */
export function isLost() {
  return lost;
}

/** Heed a refusal that is about who asks; returns whether it was one. @param {unknown} error */
export function takeRefusal(error) {
  const { code } = /** @type {{code?: unknown}} */ (error ?? {});
  if (code === "not_signed_in") showLost(true);
  if (code === "other_user") giveWay();
  return code === "not_signed_in" || code === "other_user";
}

/** @param {boolean} now */
function showLost(now) {
  const before = lost;
  lost = now;
  const notice = document.getElementById("session-ended");
  notice?.querySelector("a")?.setAttribute("href", loginUrl());
  if (notice) notice.hidden = !now;
  if (before && !now) identity.dispatchEvent(new Event("return"));
}

/** Somebody else is logged in, and nothing on this page is theirs. */
function giveWay() {
  lost = true;
  askAnew(location.pathname.startsWith("/tasks/") ? "/tasks" : undefined);
}

/** Load a page anew, as a plain GET. */
function askAnew(url = location.pathname + location.search) {
  location.replace(url);
}

/** Another page has been loaded. @param {{user: string, left: boolean}} page for whom, and whether by a logout */
function hear({ user, left }) {
  const entering = ["/login", "/register"].includes(location.pathname);
  if (!pageUser) return user && entering && askAnew();
  if (user === pageUser) return showLost(false);
  if (user) return giveWay();
  if (left) return leave();
  look();
}

/** This page's user has logged out in another tab: what was typed here isn't kept, as it is for a session that ended. */
function leave() {
  lost = false; // a held poll may have been refused before
  forgetDraft();
  askAnew();
}

/** Ask the server who is logged in. */
async function look() {
  if (!pageUser) return;
  lookedAt = performance.now();
  try {
    await requestJson("/api/auth/user");
    showLost(false);
  } catch (error) {
    takeRefusal(error);
  }
}

/** Somebody has come back to a page that was put aside; after a logout it isn't shown again. */
async function lookAgain() {
  await look();
  if (lost) askAnew();
}

function listen() {
  if (globalThis.BroadcastChannel) {
    const channel = new BroadcastChannel(NAME);
    channel.addEventListener("message", ({ data }) => hear(data));
    channel.postMessage({ user: pageUser, left: !pageUser && sessionStorage.getItem(LEFT) !== null });
  }
  sessionStorage.removeItem(LEFT);
  for (const form of document.querySelectorAll("form[action='/api/auth/logout'], form[data-leaves]")) {
    form.addEventListener("submit", () => {
      sessionStorage.setItem(LEFT, "yes");
      forgetDraft();
    });
  }
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && performance.now() - lookedAt > LOOK_MS) look();
  });
  window.addEventListener("pageshow", ({ persisted }) => persisted && lookAgain());
}

listen();
