// @ts-check
/** Texts as the server counts and keeps them: `server/web/handlers/texts.py` has the same rules. */

const SPACE = /[\s\u001C-\u001F\u0085\u200B\u2060]/;
const SHOWN = /[^\s\p{Cc}\p{Default_Ignorable_Code_Point}\u2800]/u;

/** With line feeds for line ends, and without white space around it. @param {string} text */
export function tidy(text) {
  let [start, end] = [0, text.length];
  while (start < end && SPACE.test(text[start])) start += 1;
  while (start < end && SPACE.test(text[end - 1])) end -= 1;
  return text.slice(start, end).replaceAll(/\r\n?/g, "\n");
}

/** In characters, not in UTF-16 units. @param {string} text */
export function lengthOf(text) {
  return [...text].length;
}

/** Whether nobody would see anything of this text. @param {string} text */
export function showsNothing(text) {
  return !SHOWN.test(text);
}
