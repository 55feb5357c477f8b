// @ts-check
/** Elements of the page's template, found once and with their types. */

/**
 * Return the element with this id.
 * @template {Element} Kind
 * @param {string} id
 * @param {new () => Kind} kind
 * @returns {Kind}
 * @throws {TypeError} the template has no such element
 */
export function byId(id, kind) {
  return checked(document.getElementById(id), kind, `#${id}`);
}

/**
 * Return the element below `root` with this `data-part`.
 * @template {Element} Kind
 * @param {ParentNode} root
 * @param {string} name
 * @param {new () => Kind} kind
 * @returns {Kind}
 * @throws {TypeError} the template has no such element
 */
export function partOf(root, name, kind) {
  return checked(root.querySelector(`[data-part="${name}"]`), kind, `[data-part="${name}"]`);
}

/**
 * @template {Element} Kind
 * @param {Element|null} element
 * @param {new () => Kind} kind
 * @param {string} selector
 * @returns {Kind}
 */
function checked(element, kind, selector) {
  if (element instanceof kind) return element;
  throw new TypeError(`The page has no ${kind.name} ${selector}`);
}

/**
 * Show an element with this text, or hide it if the text is empty.
 * @param {HTMLElement} element
 * @param {string} text
 */
export function showText(element, text) {
  element.textContent = text;
  element.hidden = !text;
}
