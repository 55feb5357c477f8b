// @ts-check
/** The figures of the server, kept up to date while somebody looks. */

import { requestJson } from "../longpoll/api.js";
import { showTime } from "../parts/card.js";
import { takeRefusal } from "../parts/identity.js";
import { backoff, sleep } from "../longpoll/poll_loop.js";

/** @typedef {Record<string, any>} Figures */

const SPARK_POINTS = 60;
const TIMEOUT_MS = 10000;
/** @type {Record<string, string>} */
const OUTCOMES = {
  immediate: "Answered at once",
  change: "Changed while held",
  timeout: "Hold ended, nothing new",
  reset: "Version from another time",
  drain: "Server was stopping",
  degraded: "Too many held",
  superseded: "Asked again by the same page",
  client_gone: "Client left",
  not_found: "No such task",
  deleted: "Deleted while held",
};

const count = new Intl.NumberFormat();
const exact = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 });
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

/** @param {string} id @returns {any} */
const byId = (id) => document.getElementById(id);

/** @type {Record<string, (value: any) => string>} */
const SPELL = {
  count: (value) => count.format(value),
  rate: (value) => `${exact.format(value)} / s`,
  duration: (value) => (value < 1 ? `${exact.format(value * 1000)} ms` : `${exact.format(value)} s`),
  long: spellLong,
  up: (value) => (value ? "Up" : "Down"),
  yes: (value) => (value ? "Yes" : "No"),
  list: (value) => (value.length ? value.join(", ") : "None"),
  text: String,
};

/** @param {number} seconds */
function spellLong(seconds) {
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
}

/** @param {Figures} figures @param {string} path */
function find(figures, path) {
  return path.split(".").reduce((/** @type {any} */ value, name) => value?.[name], figures);
}

/** @param {Record<string, number>} ended */
const total = (ended) => Object.values(ended).reduce((sum, polls) => sum + polls, 0);

class Overview {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.refreshMs = Number(element.dataset.refreshSeconds) * 1000;
    /** @type {Map<string, number[]>} */
    this.history = new Map();
    /** @type {Figures|null} */
    this.before = null;
    this.show(JSON.parse(element.dataset.figures ?? "{}"));
  }

  /** @param {Figures} figures */
  show(figures) {
    this.addRates(figures);
    document.querySelectorAll("[data-figure]").forEach((place) => {
      const { figure = "", as = "text" } = /** @type {HTMLElement} */ (place).dataset;
      const value = find(figures, figure);
      place.textContent = value === null || value === undefined ? "–" : SPELL[as](value);
      if (as === "up") place.classList.toggle("is-bad", !value);
    });
    document.querySelectorAll("[data-spark]").forEach((spark) => this.draw(/** @type {SVGElement} */ (spark), figures));
    this.showEnded(figures.polls.ended);
    this.showHealth(figures.process);
    byId("ops-updated").textContent = `As of ${clock.format(new Date())}`;
    this.before = figures;
  }

  /** What happened between two looks. @param {Figures} figures */
  addRates(figures) {
    const { before } = this;
    const seconds = before ? figures.process.uptimeSeconds - before.process.uptimeSeconds : 0;
    if (!before || seconds <= 0) return; // the first look, or another process has answered
    figures.polls.rate = Math.max(0, total(figures.polls.ended) - total(before.polls.ended)) / seconds;
    figures.database.rate = Math.max(0, figures.database.statements - before.database.statements) / seconds;
  }

  /** @param {SVGElement} spark @param {Figures} figures */
  draw(spark, figures) {
    const path = spark.dataset.spark ?? "";
    const value = find(figures, path);
    const points = this.history.get(path) ?? [];
    if (typeof value === "number") points.push(value);
    this.history.set(path, points.slice(-SPARK_POINTS));
    const top = Math.max(...points, 1e-9);
    const step = 120 / (SPARK_POINTS - 1);
    const from = SPARK_POINTS - points.length;
    const line = points.map((point, index) => `${((from + index) * step).toFixed(1)},${(26 - (point / top) * 24).toFixed(1)}`);
    spark.firstElementChild?.setAttribute("points", line.length > 1 ? line.join(" ") : "");
  }

  /** @param {Record<string, number>} ended */
  showEnded(ended) {
    const all = total(ended);
    const rows = Object.entries(ended).sort(([, one], [, other]) => other - one);
    byId("ops-ended").replaceChildren(
      ...rows.map(([outcome, polls]) => row(OUTCOMES[outcome] ?? outcome, count.format(polls), percent.format(polls / all))),
    );
    byId("ops-ended-none").hidden = rows.length > 0;
  }

  /** @param {{startedAt: string, checks: Record<string, boolean>}} process */
  showHealth({ startedAt, checks }) {
    const ready = Object.values(checks).every(Boolean);
    const health = byId("ops-health");
    const text = ready ? "Ready" : "Not ready";
    if (health.textContent !== text) health.textContent = text; // said aloud only when it changes
    health.dataset.status = ready ? "completed" : "failed";
    showTime(byId("ops-started"), startedAt);
  }

  /** @param {string} problem */
  showProblem(problem) {
    const notice = byId("ops-problem");
    if (notice.textContent !== problem) notice.textContent = problem;
    notice.hidden = !problem;
  }

  /** Ask again and again, but not behind anybody's back. */
  async run() {
    const never = new AbortController().signal;
    for (let failures = 0; ; ) {
      await sleep(this.refreshMs + (failures ? backoff(failures) : 0), never);
      await untilVisible();
      try {
        this.show(await requestJson("/ops/figures", { signal: AbortSignal.timeout(TIMEOUT_MS) }));
        this.showProblem("");
        failures = 0;
      } catch (error) {
        failures += 1;
        if (takeRefusal(error)) continue;
        this.showProblem("The server can't be reached. These figures are old; trying again…");
      }
    }
  }
}

/** @param {string} name @param {string[]} cells */
function row(name, ...cells) {
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

new Overview(byId("ops")).run();
