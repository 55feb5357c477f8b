// @ts-check
/** The form that describes a picture: its fields, their limits, and what it sends. */

import { Submission } from "./submission.js";
import { lengthOf, showsNothing, tidy } from "./texts.js";

const PICTURE_TYPES = ["image/png", "image/jpeg", "image/webp"];
const PICTURE_BYTES = 10 * 1024 * 1024;

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

  showReference() {
    const file = this.reference.files[0];
    const problem = file ? this.findFault(file) : "";
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

  /** @param {File} file */
  findFault(file) {
    if (!PICTURE_TYPES.includes(file.type)) return "Please choose a PNG, JPEG or WebP picture.";
    return file.size > PICTURE_BYTES ? "This file is larger than 10 MiB." : "";
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
    const form = new FormData(this.form);
    form.delete("type");
    form.set("prompt", tidy(this.prompt.value));
    if (form.has("seed")) form.set("seed", tidy(this.seed.value));
    if (!form.get("seed")) form.delete("seed");
    const file = form.get("reference_image");
    if (!(file instanceof File) || file.size === 0) form.delete("reference_image");
    this.onSubmit(new Submission(this.type, form));
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
