// @ts-check
/** The figures of the server, refreshed while the page is visible. */

import { requestJson } from "../longpoll/http.js";
import { backoff, sleep } from "../longpoll/pacing.js";
import { byId, showText } from "../parts/elements.js";
import { showTime } from "../parts/formats.js";
import { handleLoginError } from "../parts/session.js";

/**
 * The members of the figures that this module names; the template names the others by their paths (`data-figure`).
 * @typedef {object} Figures
 * @property {{ended: Record<string, number>, rate?: number}} polls
 * @property {{statements: number, rate?: number}} database
 * @property {{uptimeSeconds: number, startedAt: string, checks: Record<string, boolean>}} process
 */

const SPARK_POINTS = 60;
const SPARK_WIDTH = 120;
const SPARK_BASELINE = 26;
const SPARK_HEIGHT = 24;
const TIMEOUT_MS = 10_000;
const TIME_UNITS_SECONDS = { day: 86_400, hour: 3600, minute: 60 };

/** @type {Map<string, string>} */
const OUTCOME_LABELS = new Map([
  ["immediate", "Answered at once"],
  ["change", "Changed while held"],
  ["timeout", "Hold ended, nothing new"],
  ["reset", "Version from another time"],
  ["drain", "Server was stopping"],
  ["degraded", "Too many held"],
  ["superseded", "Asked again by the same page"],
  ["client_gone", "Client left"],
  ["not_found", "No such task"],
  ["deleted", "Deleted while held"],
]);

const count = new Intl.NumberFormat();
const exact = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 });
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

/**
 * How a value is written, by the `data-as` of its element.
 * @param {string} as
 * @param {unknown} value
 */
function format(as, value) {
  switch (as) {
    case "count":
      return count.format(Number(value));
    case "rate":
      return `${exact.format(Number(value))} / s`;
    case "duration":
      return formatSeconds(Number(value));
    case "long":
      return formatUptime(Number(value));
    case "up":
      return value ? "Up" : "Down";
    case "yes":
      return value ? "Yes" : "No";
    case "list":
      return Array.isArray(value) && value.length > 0 ? value.join(", ") : "None";
    default:
      return String(value);
  }
}

/** @param {number} seconds */
function formatSeconds(seconds) {
  return seconds < 1 ? `${exact.format(seconds * 1000)} ms` : `${exact.format(seconds)} s`;
}

/** @param {number} seconds */
function formatUptime(seconds) {
  const { day, hour, minute } = TIME_UNITS_SECONDS;
  const hours = Math.floor(seconds / hour);
  const minutes = Math.floor(seconds / minute);
  if (seconds >= day) return `${Math.floor(seconds / day)} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds % minute)} s` : `${Math.floor(seconds)} s`;
}

/**
 * Return the member at a path such as `polls.held`.
 * @param {Figures} figures
 * @param {string} path
 * @returns {unknown}
 */
function memberAt(figures, path) {
  /** @type {unknown} */
  let value = figures;
  for (const name of path.split(".")) value = /** @type {Record<string, unknown>|null|undefined} */ (value)?.[name];
  return value;
}

/** @param {Record<string, number>} counts */
const total = (counts) => Object.values(counts).reduce((sum, one) => sum + one, 0);

class Overview {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.refreshMs = Number(element.dataset.refreshSeconds) * 1000;
    /** @type {Map<string, number[]>} the last values of each figure that has a spark line */
    this.history = new Map();
    /** @type {Figures|null} */
    this.before = null;
    this.show(JSON.parse(element.dataset.figures ?? "{}"));
  }

  /** @param {Figures} figures */
  show(figures) {
    this.addRates(figures);
    for (const element of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-figure]"))) {
      const { figure = "", as = "text" } = element.dataset;
      const value = memberAt(figures, figure);
      element.textContent = value === null || value === undefined ? "–" : format(as, value);
      if (as === "up") element.classList.toggle("is-bad", !value);
    }
    for (const spark of /** @type {NodeListOf<SVGElement>} */ (document.querySelectorAll("[data-spark]"))) {
      this.drawSpark(spark, figures);
    }
    this.showOutcomes(figures.polls.ended);
    this.showHealth(figures.process);
    byId("ops-updated", HTMLElement).textContent = `As of ${clock.format(new Date())}`;
    this.before = figures;
  }

  /**
   * Add the rates since the figures before, unless another process has replied or this one has restarted.
   * @param {Figures} figures
   */
  addRates(figures) {
    const { before } = this;
    const seconds = before ? figures.process.uptimeSeconds - before.process.uptimeSeconds : 0;
    if (!before || seconds <= 0) return;
    figures.polls.rate = Math.max(0, total(figures.polls.ended) - total(before.polls.ended)) / seconds;
    figures.database.rate = Math.max(0, figures.database.statements - before.database.statements) / seconds;
  }

  /**
   * @param {SVGElement} spark
   * @param {Figures} figures
   */
  drawSpark(spark, figures) {
    const path = spark.dataset.spark ?? "";
    const value = memberAt(figures, path);
    const points = this.history.get(path) ?? [];
    if (typeof value === "number") points.push(value);
    this.history.set(path, points.slice(-SPARK_POINTS));
    const max = Math.max(...points, 1e-9);
    const step = SPARK_WIDTH / (SPARK_POINTS - 1);
    const first = SPARK_POINTS - points.length;
    const line = points.map((point, index) => {
      const y = SPARK_BASELINE - (point / max) * SPARK_HEIGHT;
      return `${((first + index) * step).toFixed(1)},${y.toFixed(1)}`;
    });
    spark.firstElementChild?.setAttribute("points", line.length > 1 ? line.join(" ") : "");
  }

  /** @param {Record<string, number>} ended polls by outcome */
  showOutcomes(ended) {
    const all = total(ended);
    const rows = Object.entries(ended).sort(([, one], [, other]) => other - one);
    byId("ops-ended", HTMLElement).replaceChildren(
      ...rows.map(([outcome, polls]) =>
        makeRow(OUTCOME_LABELS.get(outcome) ?? outcome, count.format(polls), percent.format(polls / all)),
      ),
    );
    byId("ops-ended-none", HTMLElement).hidden = rows.length > 0;
  }

  /** @param {Figures["process"]} process */
  showHealth({ startedAt, checks }) {
    const ready = Object.values(checks).every(Boolean);
    const health = byId("ops-health", HTMLElement);
    const text = ready ? "Ready" : "Not ready";
    if (health.textContent !== text) health.textContent = text; // screen readers announce each assignment
    health.dataset.status = ready ? "completed" : "failed";
    showTime(byId("ops-started", HTMLTimeElement), startedAt);
  }

  /** @param {string} problem */
  showProblem(problem) {
    const notice = byId("ops-problem", HTMLElement);
    if (notice.textContent !== problem) showText(notice, problem);
  }

  /** Request the figures again and again, while the page is visible. */
  async run() {
    const never = new AbortController().signal;
    for (let failures = 0; ; ) {
      await sleep(this.refreshMs + (failures ? backoff(failures) : 0), never);
      await untilVisible();
      try {
        const figures = await requestJson("/ops/figures", { signal: AbortSignal.timeout(TIMEOUT_MS) });
        this.show(/** @type {Figures} */ (figures));
        this.showProblem("");
        failures = 0;
      } catch (error) {
        failures += 1;
        if (handleLoginError(error)) continue;
        this.showProblem("The server can't be reached. These figures are old; trying again…");
      }
    }
  }
}

/**
 * Make a table row.
 * @param {string} name
 * @param {string[]} cells
 */
function makeRow(name, ...cells) {
  const element = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  element.append(head);
  for (const text of cells) {
    const cell = element.insertCell();
    cell.className = "number";
    cell.textContent = text;
  }
  return element;
}

function untilVisible() {
  if (document.visibilityState === "visible") return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}

new Overview(byId("ops", HTMLElement)).run();
