// @ts-check
/** The page on which pictures are created and watched. */

import { listTasks } from "../longpoll/api.js";
import { ApiError } from "../longpoll/http.js";
import { repeatedSubmission } from "../longpoll/submission.js";
import { Composer } from "../parts/composer.js";
import { keepDraft, takeDraft } from "../parts/draft.js";
import { byId, showText } from "../parts/elements.js";
import { Gallery } from "../parts/gallery.js";
import { handleLoginError, isLoggedOut, sessionEvents } from "../parts/session.js";

/** @import { Submission } from "../longpoll/submission.js" */
/** @import { Task } from "../longpoll/task.js" */

/** The page shows this many of the newest tasks. */
const MAX_SHOWN = 12;

const list = byId("cards", HTMLElement);
const empty = byId("empty", HTMLElement);
const listError = byId("list-error", HTMLElement);
const form = byId("composer", HTMLFormElement);

const gallery = new Gallery(list, retry);
const composer = new Composer(form, submit);

/** @type {Submission|null} failed, but its task may have been created */
let unconfirmed = null;
let sending = false;

/**
 * @param {Submission} next
 * @param {string} [prompt]
 */
async function submit(next, prompt = String(next.form?.get("prompt"))) {
  if (sending) return;
  // If only the reply was lost, the same inputs must not create a second task: send them with the same key.
  const submission = unconfirmed && next.equals(unconfirmed) ? unconfirmed : next;
  unconfirmed = submission;
  sending = true;
  composer.setBusy(true);
  composer.showProblem("");
  try {
    // If no other task is before it, a worker begins at once: waiting for that saves a poll.
    const { data } = await submission.send(gallery.unfinished.length === 0);
    empty.hidden = true;
    gallery.add({ ...data, prompt }, "first");
    unconfirmed = null;
  } catch (error) {
    handleSubmitError(error);
  } finally {
    sending = false;
    composer.setBusy(false);
  }
}

/** @param {unknown} error */
function handleSubmitError(error) {
  if (!(error instanceof ApiError)) {
    composer.showProblem("The server can't be reached. Your prompt is still here: please try again.");
  } else if (handleLoginError(error)) {
    composer.showProblem("Your session has ended: this was not sent. Log in, then send it again.");
  } else composer.showProblem(explain(error));
}

/** @param {ApiError} error */
function explain(error) {
  const seconds = Math.ceil(error.retryAfterMs / 1000);
  const sentence = error.message.replace(/\.?$/u, ".");
  if (seconds) return `${sentence} Please try again in ${seconds} s.`;
  return error.status >= 500 ? `${sentence} Please try again.` : sentence;
}

/** @param {Task} task */
function retry({ taskId, prompt }) {
  submit(repeatedSubmission(taskId), prompt);
  form.scrollIntoView({ block: "nearest" });
}

async function showTasks() {
  try {
    for (const task of await listTasks(MAX_SHOWN)) gallery.add(task);
    empty.hidden = gallery.cards.size > 0;
    listError.hidden = true;
  } catch (error) {
    if (handleLoginError(error)) return;
    showText(listError, "Your pictures could not be loaded. Reload the page to try again.");
  } finally {
    list.removeAttribute("aria-busy");
  }
}

window.addEventListener("pagehide", () => {
  const draft = composer.readDraft();
  if (isLoggedOut() && draft.prompt) keepDraft(draft);
});
sessionEvents.addEventListener("restored", () => {
  composer.showProblem("");
  showTasks();
});
const draft = takeDraft();
if (draft) composer.restoreDraft(draft);
showTasks();
