// @ts-check
/** Checks a file before its upload, by its content: operating systems give the same format different media types. */

const MAX_BYTES = 10 * 1024 * 1024;
/** As many bytes as the longest signature needs. */
const HEAD_BYTES = 12;
const PNG = "\x89PNG\r\n\x1a\n";
const JPEG = "\xff\xd8\xff";

/**
 * Return why the server wouldn't accept this file; "" if it would.
 * @param {File} file
 */
export async function findProblem(file) {
  if (file.size > MAX_BYTES) return "This file is larger than 10 MiB.";
  const head = await readHead(file);
  if (head === null) return "This file can't be read. Please choose it again.";
  const isWebp = head.startsWith("RIFF") && head.slice(8) === "WEBP";
  if (head.startsWith(PNG) || head.startsWith(JPEG) || isWebp) return "";
  return "Please choose a PNG, JPEG or WebP picture.";
}

/**
 * Return the first bytes, each as a character; null if the file doesn't exist any more.
 * @param {File} file
 */
async function readHead(file) {
  try {
    return String.fromCharCode(...new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer()));
  } catch {
    return null;
  }
}
