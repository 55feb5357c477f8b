// @ts-check
/** Trims and counts a text as the server does: `server/web/handlers/texts.py` has the same rules. */

// biome-ignore lint/suspicious/noControlCharactersInRegex: the server trims these, too
const SPACE = /[\s\u001C-\u001F\u0085\u200B\u2060]/u;
const SHOWN = /[^\s\p{Cc}\p{Default_Ignorable_Code_Point}\u2800]/u;

/**
 * Trim white space, and replace each line end by a line feed.
 * @param {string} text
 */
export function tidy(text) {
  let [start, end] = [0, text.length];
  while (start < end && SPACE.test(text.charAt(start))) start += 1;
  while (start < end && SPACE.test(text.charAt(end - 1))) end -= 1;
  return text.slice(start, end).replaceAll(/\r\n?/gu, "\n");
}

/**
 * Count characters, not UTF-16 units.
 * @param {string} text
 */
export function lengthOf(text) {
  return [...text].length;
}

/**
 * Whether no character of the text is visible.
 * @param {string} text
 */
export function showsNothing(text) {
  return !SHOWN.test(text);
}
