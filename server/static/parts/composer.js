// @ts-check
/** The form that describes a picture: its fields, their limits, and what it sends. */

import { findFault } from "./pictures.js";
import { Submission } from "../longpoll/submission.js";
import { lengthOf, showsNothing, tidy } from "./texts.js";

const URLS = { basic: "/api/generate", advanced: "/api/generate_advanced" };

/** @param {string} id @returns {any} */
const byId = (id) => document.getElementById(id);

/** @param {string} text nothing, or a whole number that JavaScript holds exactly */
const isSeed = (text) => /^\d*$/.test(text) && Number.isSafeInteger(Number(text));

export class Composer {
  /** @param {HTMLFormElement} form @param {(submission: Submission) => void} onSubmit */
  constructor(form, onSubmit) {
    this.form = form;
    this.onSubmit = onSubmit;
    this.maxPrompt = Number(form.dataset.maxPrompt);
    this.prompt = byId("prompt");
    this.reference = byId("reference_image");
    this.seed = byId("seed");
    form.noValidate = true; // what is wrong is said beside the field
    this.listen();
    this.count();
    this.showMode();
    this.showReference();
  }

  listen() {
    const { form, prompt } = this;
    form.addEventListener("submit", (event) => (event.preventDefault(), this.submit()));
    prompt.addEventListener("input", () => this.count());
    prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    form.querySelectorAll("[name=type]").forEach((radio) => radio.addEventListener("change", () => this.showMode()));
    this.reference.addEventListener("change", () => this.showReference());
    byId("reference-remove").addEventListener("click", () => this.removeReference());
    form.querySelectorAll("[data-sample]").forEach((chip) =>
      chip.addEventListener("click", () => this.fill(/** @type {HTMLElement} */ (chip).dataset.sample ?? "")),
    );
  }

  /** Put a prompt into the form. @param {string} prompt */
  fill(prompt) {
    this.prompt.value = prompt;
    this.count();
    this.showFieldError("prompt", "");
    this.prompt.focus();
  }

  /** What is in the form, but for the content of a file. @returns {Record<string, string>} */
  describe() {
    const { prompt, seed, reference, type } = this;
    return { prompt: prompt.value, seed: seed.value, size: byId("size").value, type, file: reference.files[0]?.name ?? "" };
  }

  /** Put what was described back. @param {Record<string, string>} draft */
  restore({ prompt, seed, size, type, file }) {
    this.seed.value = seed;
    byId("size").value = size;
    this.form.querySelectorAll("[name=type]").forEach((/** @type {any} */ radio) => (radio.checked = radio.value === type));
    this.showMode();
    this.fill(prompt);
    if (file) this.showFieldError("reference", `Please choose ${file} again.`);
  }

  /** @returns {"basic"|"advanced"} */
  get type() {
    return new FormData(this.form).get("type") === "advanced" ? "advanced" : "basic";
  }

  count() {
    const length = lengthOf(tidy(this.prompt.value));
    const hint = byId("prompt-count");
    hint.textContent = `${length} / ${this.maxPrompt}`;
    hint.classList.toggle("is-over", length > this.maxPrompt);
  }

  showMode() {
    const advanced = this.type === "advanced";
    byId("advanced").hidden = !advanced;
    byId("advanced").disabled = !advanced;
  }

  async showReference() {
    const file = this.reference.files[0];
    const problem = file ? await findFault(file) : "";
    if (file !== this.reference.files[0]) return; // another one was chosen meanwhile
    this.showFieldError("reference", problem);
    if (problem) this.reference.value = "";
    const shown = Boolean(file) && !problem;
    const picture = byId("reference-picture");
    if (picture.src) URL.revokeObjectURL(picture.src);
    if (shown) picture.src = URL.createObjectURL(file);
    else picture.removeAttribute("src");
    byId("reference-name").textContent = shown ? file.name : "";
    byId("reference-preview").hidden = !shown;
  }

  removeReference() {
    this.reference.value = "";
    this.showReference();
    this.reference.focus();
  }

  /** @param {"prompt"|"seed"|"reference"} field @param {string} problem */
  showFieldError(field, problem) {
    const error = byId(`${field}-error`);
    error.textContent = problem;
    error.hidden = !problem;
    const input = field === "reference" ? this.reference : this[field];
    if (problem) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }

  /** Whether the form may be sent; otherwise the first fault has the focus. */
  validate() {
    const prompt = tidy(this.prompt.value);
    const over = lengthOf(prompt) > this.maxPrompt ? `At most ${this.maxPrompt} characters, please.` : "";
    const promptFault = showsNothing(prompt) ? "Please describe a picture." : over;
    const seedFault = this.type === "advanced" && !isSeed(tidy(this.seed.value)) ? "A whole number, please." : "";
    this.showFieldError("prompt", promptFault);
    this.showFieldError("seed", seedFault);
    if (promptFault) this.prompt.focus();
    else if (seedFault) this.seed.focus();
    return !promptFault && !seedFault;
  }

  submit() {
    if (!this.validate()) return;
    const given = new FormData(this.form);
    const form = new FormData();
    form.set("prompt", tidy(this.prompt.value));
    form.set("size", String(given.get("size")));
    const seed = tidy(String(given.get("seed") ?? ""));
    if (seed) form.set("seed", seed);
    const file = given.get("reference_image");
    if (file instanceof File && file.size > 0) form.set("reference_image", file);
    this.onSubmit(new Submission(URLS[this.type], form));
  }

  /** @param {boolean} busy */
  setBusy(busy) {
    const submit = byId("submit");
    submit.setAttribute("aria-disabled", String(busy));
    submit.textContent = busy ? "Sending…" : "Create picture";
  }

  /** @param {string} problem */
  showProblem(problem) {
    const error = byId("form-error");
    error.textContent = problem;
    error.hidden = !problem;
  }
}
