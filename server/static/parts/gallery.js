// @ts-check
/** The cards of a page, each updated by the page's task feed. */

import { cancelTask } from "../longpoll/api.js";
import { pageUser } from "../longpoll/page.js";
import { isFinished } from "../longpoll/task.js";
import { TaskFeed } from "../longpoll/task_feed.js";
import { handleLoginError, sessionEvents } from "./session.js";
import { OFFLINE, TaskCard } from "./task_card.js";

/** @import { PollError } from "../longpoll/poll_error.js" */
/** @import { Task } from "../longpoll/task.js" */

/** @type {Map<string, string>} by the error's code */
const GONE_TEXTS = new Map([
  ["task_not_found", "This picture is no longer there."],
  ["task_deleted", "This picture was deleted."],
]);

/** Return a feed with the settings that the server has rendered into the page. */
function openFeed() {
  const { holdSeconds, clientTimeoutSeconds, budgetSeconds } = document.body.dataset;
  return new TaskFeed({
    holdSeconds: Number(holdSeconds),
    clientTimeoutSeconds: Number(clientTimeoutSeconds),
    budgetSeconds: Number(budgetSeconds),
    user: pageUser,
  });
}

export class Gallery {
  /**
   * @param {HTMLElement} list
   * @param {(task: Task) => void} onRetry the user wants another task with the same inputs
   */
  constructor(list, onRetry) {
    this.list = list;
    this.onRetry = onRetry;
    this.feed = openFeed();
    /** @type {Map<string, TaskCard>} */
    this.cards = new Map();
    setInterval(() => this.forUnfinished((card) => card.tick()), 1000);
    sessionEvents.addEventListener("restored", () => this.forUnfinished((card) => this.keepWaiting(card)));
    // A held request may take seconds to fail; the browser knows sooner.
    window.addEventListener("offline", () => this.forUnfinished((card) => card.showConnection(OFFLINE)));
    window.addEventListener("online", () => this.forUnfinished((card) => card.showConnection("")));
  }

  /**
   * Show a task, and follow it if it isn't finished.
   * @param {Task} task
   * @param {"first"|"last"} [place]
   */
  add(task, place = "last") {
    if (this.cards.has(task.taskId)) return;
    const card = new TaskCard(task, {
      cancel: () => this.cancel(card),
      retry: () => this.onRetry({ ...card.task, prompt: card.prompt }),
      keepWaiting: () => this.keepWaiting(card),
    });
    this.cards.set(task.taskId, card);
    if (place === "first") this.list.prepend(card.element);
    else this.list.append(card.element);
    if (!isFinished(task)) this.watch(card);
  }

  /** @param {TaskCard} card */
  watch(card) {
    this.feed.watch(card.task, {
      onUpdate: (task) => card.update(task),
      onState: (state) => card.showPollState(state),
      onEnd: (task) => card.update(task),
      onError: (error) => this.handlePollError(card, error),
    });
  }

  /** @param {TaskCard} card */
  keepWaiting(card) {
    card.showConnection("");
    card.parts.keepWaiting.hidden = true;
    this.watch(card);
  }

  /**
   * @param {TaskCard} card
   * @param {PollError} error
   */
  handlePollError(card, error) {
    const goneText = GONE_TEXTS.get(error.code);
    if (handleLoginError(error)) card.showConnection("Your session has ended.");
    else if (goneText) card.showGone(goneText);
    else card.showStalled(error.code === "budget_spent" ? "Nothing has changed for a long time." : error.message);
  }

  /** @param {TaskCard} card */
  async cancel(card) {
    const { cancel } = card.parts;
    cancel.disabled = true;
    card.showProblem("");
    try {
      const task = await cancelTask(card.task.taskId);
      if (task && task.version > card.task.version) card.update(task);
    } catch (error) {
      cancel.disabled = false;
      if (!handleLoginError(error)) card.showProblem("It could not be canceled. Please try again.");
    }
  }

  /** The cards of the unfinished tasks. */
  get unfinished() {
    return [...this.cards.values()].filter((card) => !isFinished(card.task));
  }

  /** @param {(card: TaskCard) => void} act */
  forUnfinished(act) {
    for (const card of this.unfinished) act(card);
  }
}
