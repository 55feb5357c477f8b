// @ts-check
/** The inputs of a form that was not sent, kept in the tab's storage for the same user. */

import { pageUser } from "../longpoll/page.js";

/** @typedef {{prompt: string, seed: string, size: string, type: string, file: string}} Draft `file`: its name */

const STORAGE_KEY = "unsent";

/** @param {Draft} draft */
export function keepDraft(draft) {
  try {
    sessionStorage.setItem(STORAGE_KEY, JSON.stringify({ user: pageUser, draft }));
  } catch {
    // storage is disabled or full: the draft is lost
  }
}

/**
 * Remove the draft from the storage and return it; null if the page's user has left none.
 * @returns {Draft|null}
 */
export function takeDraft() {
  const { user, draft } = JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? "{}");
  if (!draft || user !== pageUser) return null;
  forgetDraft();
  return draft;
}

export function forgetDraft() {
  sessionStorage.removeItem(STORAGE_KEY);
}
