// @ts-check
/** The documented address of the client, for scripts of other pages; it doesn't change when the modules behind it do. */

// biome-ignore lint/performance/noBarrelFile: scripts of other pages need one address
export { askStatus, follow } from "./longpoll/follow.js";
export { backoff, sleep } from "./longpoll/pacing.js";
export { PollError } from "./longpoll/poll_error.js";
export { isFinished } from "./longpoll/task.js";
