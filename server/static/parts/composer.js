// @ts-check
/** The form for a new picture: its fields, their validation, and the submission of their values. */

import { Submission } from "../longpoll/submission.js";
import { byId, showText } from "./elements.js";
import { findProblem } from "./pictures.js";
import { lengthOf, showsNothing, tidy } from "./texts.js";

/** @import { Draft } from "./draft.js" */

const URLS = { basic: "/api/generate", advanced: "/api/generate_advanced" };

/**
 * Whether the text is empty, or a whole number that JavaScript represents exactly.
 * @param {string} text
 */
const isSeed = (text) => /^\d*$/u.test(text) && Number.isSafeInteger(Number(text));

export class Composer {
  /**
   * @param {HTMLFormElement} form
   * @param {(submission: Submission) => void} onSubmit
   */
  constructor(form, onSubmit) {
    this.form = form;
    this.onSubmit = onSubmit;
    this.maxPrompt = Number(form.dataset.maxPrompt);
    this.prompt = byId("prompt", HTMLTextAreaElement);
    this.reference = byId("reference_image", HTMLInputElement);
    this.seed = byId("seed", HTMLInputElement);
    this.size = byId("size", HTMLSelectElement);
    /** @type {HTMLInputElement[]} */
    this.typeRadios = [...form.querySelectorAll("input")].filter(({ name }) => name === "type");
    form.noValidate = true; // errors are shown beside the fields instead
    this.listen();
    this.showPromptLength();
    this.showType();
    this.showReference();
  }

  listen() {
    const { form, prompt } = this;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    prompt.addEventListener("input", () => this.showPromptLength());
    prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    for (const radio of this.typeRadios) radio.addEventListener("change", () => this.showType());
    this.reference.addEventListener("change", () => this.showReference());
    byId("reference-remove", HTMLButtonElement).addEventListener("click", () => this.removeReference());
    for (const chip of /** @type {NodeListOf<HTMLElement>} */ (form.querySelectorAll("[data-sample]"))) {
      chip.addEventListener("click", () => this.setPrompt(chip.dataset.sample ?? ""));
    }
  }

  /** @param {string} prompt */
  setPrompt(prompt) {
    this.prompt.value = prompt;
    this.showPromptLength();
    this.showFieldError("prompt", "");
    this.prompt.focus();
  }

  /**
   * Return the values of the fields; of a file only its name.
   * @returns {Draft}
   */
  readDraft() {
    const { prompt, seed, size, reference, type } = this;
    return { prompt: prompt.value, seed: seed.value, size: size.value, type, file: reference.files?.[0]?.name ?? "" };
  }

  /** @param {Draft} draft */
  restoreDraft({ prompt, seed, size, type, file }) {
    this.seed.value = seed;
    this.size.value = size;
    for (const radio of this.typeRadios) radio.checked = radio.value === type;
    this.showType();
    this.setPrompt(prompt);
    if (file) this.showFieldError("reference", `Please choose ${file} again.`);
  }

  /** @returns {"basic"|"advanced"} */
  get type() {
    return new FormData(this.form).get("type") === "advanced" ? "advanced" : "basic";
  }

  showPromptLength() {
    const length = lengthOf(tidy(this.prompt.value));
    const hint = byId("prompt-count", HTMLElement);
    hint.textContent = `${length} / ${this.maxPrompt}`;
    hint.classList.toggle("is-over", length > this.maxPrompt);
  }

  /** Show the fields of the chosen type. */
  showType() {
    const fields = byId("advanced", HTMLFieldSetElement);
    fields.hidden = this.type !== "advanced";
    fields.disabled = fields.hidden;
  }

  /** Show the chosen reference image, or why the server wouldn't accept it. */
  async showReference() {
    const file = this.reference.files?.[0];
    const problem = file ? await findProblem(file) : "";
    if (file !== this.reference.files?.[0]) return; // another one has been chosen meanwhile
    this.showFieldError("reference", problem);
    if (problem) this.reference.value = "";
    const shown = problem ? undefined : file;
    const picture = byId("reference-picture", HTMLImageElement);
    if (picture.src) URL.revokeObjectURL(picture.src);
    if (shown) picture.src = URL.createObjectURL(shown);
    else picture.removeAttribute("src");
    byId("reference-name", HTMLElement).textContent = shown?.name ?? "";
    byId("reference-preview", HTMLElement).hidden = !shown;
  }

  removeReference() {
    this.reference.value = "";
    this.showReference();
    this.reference.focus();
  }

  /**
   * @param {"prompt"|"seed"|"reference"} field
   * @param {string} problem
   */
  showFieldError(field, problem) {
    showText(byId(`${field}-error`, HTMLElement), problem);
    if (problem) this[field].setAttribute("aria-invalid", "true");
    else this[field].removeAttribute("aria-invalid");
  }

  /** Show the errors of the fields, and focus the first field that has one. Returns whether there are none. */
  validate() {
    const prompt = tidy(this.prompt.value);
    const lengthError = lengthOf(prompt) > this.maxPrompt ? `At most ${this.maxPrompt} characters, please.` : "";
    const promptError = showsNothing(prompt) ? "Please describe a picture." : lengthError;
    const seedError = this.type === "advanced" && !isSeed(tidy(this.seed.value)) ? "A whole number, please." : "";
    this.showFieldError("prompt", promptError);
    this.showFieldError("seed", seedError);
    if (promptError) this.prompt.focus();
    else if (seedError) this.seed.focus();
    return !(promptError || seedError);
  }

  submit() {
    if (!this.validate()) return;
    const values = new FormData(this.form);
    const form = new FormData();
    form.set("prompt", tidy(this.prompt.value));
    form.set("size", String(values.get("size")));
    const seed = tidy(String(values.get("seed") ?? ""));
    if (seed) form.set("seed", seed);
    const file = values.get("reference_image");
    if (file instanceof File && file.size > 0) form.set("reference_image", file);
    this.onSubmit(new Submission(URLS[this.type], form));
  }

  /** @param {boolean} busy */
  setBusy(busy) {
    const submit = byId("submit", HTMLButtonElement);
    submit.setAttribute("aria-disabled", String(busy));
    submit.textContent = busy ? "Sending…" : "Create picture";
  }

  /** @param {string} problem */
  showProblem(problem) {
    showText(byId("form-error", HTMLElement), problem);
  }
}
