// @ts-check
/** The page where pictures are created and watched. */

import { ApiError, listTasks } from "../longpoll/api.js";
import { Composer } from "../parts/composer.js";
import { keepDraft, takeDraft } from "../parts/draft.js";
import { Gallery } from "../parts/gallery.js";
import { identity, isLost, takeRefusal } from "../parts/identity.js";
import { submissionAgain } from "../longpoll/submission.js";

/** @typedef {import("../longpoll/submission.js").Submission} Submission */

/** @typedef {import("../longpoll/api.js").Task} Task */

const SHOWN = 12;

const list = /** @type {HTMLElement} */ (document.getElementById("cards"));
const empty = /** @type {HTMLElement} */ (document.getElementById("empty"));
const listError = /** @type {HTMLElement} */ (document.getElementById("list-error"));
const form = /** @type {HTMLFormElement} */ (document.getElementById("composer"));

const gallery = new Gallery(list, { onRetry: retry });
const composer = new Composer(form, submit);

/** @type {Submission|null} sent, but not known to have arrived */
let unanswered = null;
let sending = false;

/** @param {Submission} wish @param {string} [prompt] what it is about */
async function submit(wish, prompt = String(wish.form?.get("prompt"))) {
  if (sending) return;
  // The answer to the last try may be what was lost: the same wish keeps its key.
  const submission = unanswered && wish.equals(unanswered) ? unanswered : wish;
  unanswered = submission;
  sending = true;
  composer.setBusy(true);
  composer.showProblem("");
  try {
    // With nothing before it, it begins at once: its first state is worth the moment, and a request less.
    const { data } = await submission.send(gallery.unfinished.length === 0);
    empty.hidden = true;
    gallery.add({ ...data, prompt }, "first");
    unanswered = null;
  } catch (error) {
    takeError(error);
  } finally {
    sending = false;
    composer.setBusy(false);
  }
}

/** @param {unknown} error */
function takeError(error) {
  if (!(error instanceof ApiError)) {
    return composer.showProblem("The server can't be reached. Your prompt is still here: please try again.");
  }
  if (takeRefusal(error)) composer.showProblem("Your session has ended: this was not sent. Log in, then send it again.");
  else composer.showProblem(explain(error));
}

/** @param {ApiError} error */
function explain(error) {
  const seconds = Math.ceil(error.retryAfterMs / 1000);
  const sentence = error.message.replace(/\.?$/, ".");
  if (seconds) return `${sentence} Please try again in ${seconds} s.`;
  return error.status >= 500 ? `${sentence} Please try again.` : sentence;
}

/** @param {Task} task */
function retry({ taskId, prompt }) {
  submit(submissionAgain(taskId), prompt);
  form.scrollIntoView({ block: "nearest" });
}

async function showTasks() {
  try {
    const tasks = await listTasks(SHOWN);
    tasks.forEach((task) => gallery.add(task));
    empty.hidden = gallery.cards.size > 0;
    listError.hidden = true;
  } catch (error) {
    if (takeRefusal(error)) return;
    listError.textContent = "Your pictures could not be loaded. Reload the page to try again.";
    listError.hidden = false;
  } finally {
    list.removeAttribute("aria-busy");
  }
}

window.addEventListener("pagehide", () => {
  const draft = composer.describe();
  if (isLost() && draft.prompt) keepDraft(draft);
});
identity.addEventListener("return", () => {
  composer.showProblem("");
  showTasks();
});
const draft = takeDraft();
if (draft) composer.restore(draft);
showTasks();
