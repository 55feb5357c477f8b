// @ts-check
/** The cards of a page, joined to the desk that follows their tasks. */

import { cancelTask, pageUser } from "../longpoll/api.js";
import { Card, OFFLINE } from "./card.js";
import { Desk } from "../longpoll/task_feed.js";
import { identity, takeRefusal } from "./identity.js";
import { isFinished } from "../longpoll/poll_loop.js";

/** @typedef {import("../longpoll/api.js").Task} Task */

/** @type {Record<string, string>} */
const GONE = {
  task_not_found: "This picture is no longer there.",
  task_deleted: "This picture was deleted.",
};

/** The desk with the figures the server wrote into the page. */
export function openDesk() {
  const { holdSeconds, clientTimeoutSeconds, budgetSeconds } = document.body.dataset;
  return new Desk({
    holdSeconds: Number(holdSeconds),
    clientTimeoutSeconds: Number(clientTimeoutSeconds),
    budgetSeconds: Number(budgetSeconds),
    user: pageUser,
  });
}

export class Gallery {
  /**
   * @param {HTMLElement} list
   * @param {{onRetry: (task: Task) => void, onEnd?: (task: Task) => void}} events
   */
  constructor(list, { onRetry, onEnd = () => {} }) {
    this.list = list;
    this.onRetry = onRetry;
    this.onEnd = onEnd;
    this.desk = openDesk();
    /** @type {Map<string, Card>} */
    this.cards = new Map();
    setInterval(() => this.tick(), 1000);
    identity.addEventListener("return", () => this.unfinished.forEach((card) => this.keepWaiting(card)));
    // A held request doesn't notice that it is cut off; the person may know already.
    window.addEventListener("offline", () => this.unfinished.forEach((card) => card.showConnection(OFFLINE)));
    window.addEventListener("online", () => this.unfinished.forEach((card) => card.showConnection("")));
  }

  /** Show a task and follow it to its end. @param {Task} task @param {"first"|"last"} [place] */
  add(task, place = "last") {
    if (this.cards.has(task.taskId)) return;
    const card = new Card(task, {
      cancel: () => this.cancel(card),
      retry: () => this.onRetry({ ...this.taskOf(card), prompt: card.prompt }),
      keepWaiting: () => this.keepWaiting(card),
    });
    this.cards.set(task.taskId, card);
    if (place === "first") this.list.prepend(card.element);
    else this.list.append(card.element);
    if (!isFinished(task)) this.watch(card);
  }

  /** @param {Card} card @returns {Task} */
  taskOf(card) {
    return /** @type {Task} */ (card.task);
  }

  /** @param {Card} card */
  watch(card) {
    this.desk.watch(this.taskOf(card), {
      onUpdate: (data) => card.show(data),
      onState: (state) => card.showState(state),
      onEnd: (data) => this.end(card, data),
      onError: (error) => this.takeError(card, error),
    });
  }

  /** @param {Card} card @param {Task} data */
  end(card, data) {
    card.show(data);
    this.onEnd(data);
  }

  /** @param {Card} card */
  keepWaiting(card) {
    card.showConnection("");
    card.parts.keepWaiting.hidden = true;
    this.watch(card);
  }

  /** @param {Card} card @param {import("../longpoll/poll_loop.js").PollError} error */
  takeError(card, error) {
    const { code, message } = error;
    if (takeRefusal(error)) card.showConnection("Your session has ended.");
    else if (code in GONE) card.showGone(GONE[code]);
    else card.showStalled(code === "budget_spent" ? "Nothing has changed for a long time." : message);
  }

  /** @param {Card} card */
  async cancel(card) {
    const { cancel } = card.parts;
    cancel.disabled = true;
    card.showProblem("");
    try {
      const data = await cancelTask(this.taskOf(card).taskId);
      if (data && data.version > this.taskOf(card).version) card.show(data);
    } catch (error) {
      cancel.disabled = false;
      if (takeRefusal(error)) return;
      card.showProblem("It could not be canceled. Please try again.");
    }
  }

  /** The cards of what is still being made. */
  get unfinished() {
    return [...this.cards.values()].filter((card) => !isFinished(this.taskOf(card)));
  }

  tick() {
    this.unfinished.forEach((card) => card.tick());
  }
}
