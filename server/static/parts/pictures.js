// @ts-check
/** Whether a file is a picture that the server takes: by its content, for systems name the same kind differently. */

const MOST_BYTES = 10 * 1024 * 1024;
const PNG = "\x89PNG\r\n\x1a\n";
const JPEG = "\xff\xd8\xff";

/** What is wrong with a file, empty if nothing. @param {File} file */
export async function findFault(file) {
  if (file.size > MOST_BYTES) return "This file is larger than 10 MiB.";
  const start = await readStart(file);
  if (start === null) return "This file can't be read. Please choose it again.";
  const isWebp = start.startsWith("RIFF") && start.slice(8) === "WEBP";
  if (start.startsWith(PNG) || start.startsWith(JPEG) || isWebp) return "";
  return "Please choose a PNG, JPEG or WebP picture.";
}

/** The first bytes, each as a character; null if the file has gone. @param {File} file */
async function readStart(file) {
  try {
    return String.fromCharCode(...new Uint8Array(await file.slice(0, 12).arrayBuffer()));
  } catch {
    return null;
  }
}
