// @ts-check
/** What was typed and not sent when its page went, kept in this tab for the same user. */

import { pageUser } from "../longpoll/api.js";

const NAME = "unsent";

/** @param {object} draft */
export function keepDraft(draft) {
  try {
    sessionStorage.setItem(NAME, JSON.stringify({ user: pageUser, draft }));
  } catch {
    // no storage, or no room in it
  }
}

/** Take it out. @returns {any} null if this user has left none */
export function takeDraft() {
  const { user, draft } = JSON.parse(sessionStorage.getItem(NAME) ?? "{}");
  if (!draft || user !== pageUser) return null;
  forgetDraft();
  return draft;
}

export function forgetDraft() {
  sessionStorage.removeItem(NAME);
}
