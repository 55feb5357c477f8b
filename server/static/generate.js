// @ts-check
/** The page where pictures are created and watched. */

import { ApiError, goToLogin, listTasks } from "./api.js";
import { Composer } from "./composer.js";
import { Gallery } from "./gallery.js";
import { Submission } from "./submission.js";

/** @typedef {import("./api.js").Task} Task */

const SHOWN = 12;
const DRAFT = "draft";

const list = /** @type {HTMLElement} */ (document.getElementById("cards"));
const empty = /** @type {HTMLElement} */ (document.getElementById("empty"));
const listError = /** @type {HTMLElement} */ (document.getElementById("list-error"));
const form = /** @type {HTMLFormElement} */ (document.getElementById("composer"));

const gallery = new Gallery(list, { onRetry: retry });
const composer = new Composer(form, submit);

/** What each task of this page was made from: its files can't be read back from the server. @type {Map<string, Submission>} */
const origins = new Map();
/** @type {Submission|null} sent, but not known to have arrived */
let unanswered = null;
let sending = false;

/** @param {Submission} wish */
async function submit(wish) {
  if (sending) return;
  // The answer to the last try may be what was lost: the same wish keeps its key.
  const submission = unanswered && wish.equals(unanswered) ? unanswered : wish;
  unanswered = submission;
  sending = true;
  composer.setBusy(true);
  composer.showProblem("");
  try {
    // With nothing before it, it begins at once: its first state is worth the moment, and a request less.
    showCreated(submission, await submission.send(gallery.unfinished.length === 0));
    unanswered = null;
  } catch (error) {
    takeError(error);
  } finally {
    sending = false;
    composer.setBusy(false);
  }
}

/** @param {Submission} submission @param {{taskId: string, data: Task}} created */
function showCreated(submission, { data }) {
  const prompt = String(submission.form.get("prompt"));
  origins.set(data.taskId, submission);
  empty.hidden = true;
  gallery.add({ ...data, prompt }, "first");
}

/** @param {unknown} error */
function takeError(error) {
  if (!(error instanceof ApiError)) {
    return composer.showProblem("The server can't be reached. Your prompt is still here: please try again.");
  }
  if (error.code === "not_signed_in") return goToLogin();
  composer.showProblem(explain(error));
}

/** @param {ApiError} error */
function explain(error) {
  const seconds = Math.ceil(error.retryAfterMs / 1000);
  const sentence = error.message.replace(/\.?$/, ".");
  if (seconds) return `${sentence} Please try again in ${seconds} s.`;
  return error.status >= 500 ? `${sentence} Please try again.` : sentence;
}

/** @param {Task} task */
function retry(task) {
  const origin = origins.get(task.taskId);
  if (origin) return submit(origin.renew());
  composer.fill(task.prompt ?? "");
  form.scrollIntoView({ block: "center" });
}

async function showTasks() {
  try {
    const tasks = await listTasks(SHOWN);
    tasks.forEach((task) => gallery.add(task));
    empty.hidden = gallery.cards.size > 0;
  } catch (error) {
    if (error instanceof ApiError && error.code === "not_signed_in") return goToLogin();
    listError.textContent = "Your pictures could not be loaded. Reload the page to try again.";
    listError.hidden = false;
  } finally {
    list.removeAttribute("aria-busy");
  }
}

/** A prompt brought from another page. */
function takeDraft() {
  const draft = sessionStorage.getItem(DRAFT);
  sessionStorage.removeItem(DRAFT);
  if (draft) composer.fill(draft);
}

takeDraft();
showTasks();
