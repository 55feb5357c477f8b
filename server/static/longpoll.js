// @ts-check
/** The address that other pages import: what stands behind it may move. */

export * from "./longpoll/follow.js";
