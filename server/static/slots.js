// @ts-check
/**
 * The browser's poll connections, shared by all its tabs.
 *
 * HTTP/1.1 gives six connections to one host to the whole browser, not to each tab. Two tabs of four
 * held polls would leave none for a submit. A slot is a Web Lock: a tab that dies gives it back.
 */

const SLOTS = 4;

/**
 * Take a slot if one is free.
 * @returns {Promise<(() => void)|null>} gives the slot back; null when all are taken
 */
export async function takeSlot() {
  if (!navigator.locks) return () => {}; // plain http on a local network: each tab for itself
  for (let number = 1; number <= SLOTS; number += 1) {
    const release = await tryLock(`poll-${number}`);
    if (release) return release;
  }
  return null;
}

/** @param {string} name @returns {Promise<(() => void)|null>} */
function tryLock(name) {
  return new Promise((resolve, reject) => {
    /** @param {Lock|null} lock */
    const keep = (lock) => (lock ? new Promise((release) => resolve(() => release(null))) : resolve(null));
    navigator.locks.request(name, { ifAvailable: true }, keep).catch(reject);
  });
}
