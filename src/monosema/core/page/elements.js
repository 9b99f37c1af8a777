// Numbers as text, elements, tips and long tables. Text of users is only ever given to textContent and append.

const byId = (id) => document.getElementById(id);

function count(value) {
  return value.toLocaleString("en-US");
}

/** Three significant digits, without a power of ten where that is short. */
function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4 || size < 1e-3) return value.toExponential(2);
  return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
}

function share(value) {
  return `${number(100 * value)} %`;
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function add(parent, ...children) {
  parent.append(...children);
  return parent;
}

function explainOldBrowser() {
  const message = "This browser cannot unpack the page's data; use a version from 2023 or later.";
  document.removeEventListener("mousemove", showTip);
  document.body.replaceChildren(make("p", "message", message));
}

/** The tip of what the mouse is over: `data-tip` of it or of what it is in. */
function showTip(event) {
  const target = event.target.closest?.("[data-tip]");
  const tip = byId("tip");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const x = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
  const above = event.clientY - tip.offsetHeight - 10;
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${above > 4 ? above : event.clientY + 18}px`;
}
document.addEventListener("mousemove", showTip);

const ASCENDING_FIRST = new Set(["index", "name"]);

/** A button that sorts by `key`: `sort` has the key and the direction sorted by, which a click changes before `then`. */
function sortButton(key, label, sort, then) {
  const button = make("button", "", label);
  button.type = "button";
  button.dataset.key = key;
  button.addEventListener("click", () => {
    sort.descending = sort.key === key ? !sort.descending : !ASCENDING_FIRST.has(key);
    sort.key = key;
    then();
  });
  return button;
}

/** The aria-sort of the heading around it. */
function sortDirection(key, sort) {
  return sort.key !== key ? "none" : sort.descending ? "descending" : "ascending";
}

/** First row in sight and the one after the last, with some beyond on both sides, of rows of equal height. */
function rowsInSight(scroller, height, nRows) {
  const first = Math.max(0, Math.floor(scroller.scrollTop / height) - 6);
  return [first, Math.min(nRows, Math.ceil((scroller.scrollTop + scroller.clientHeight) / height) + 6)];
}

/** `draw` once a frame, whenever another part of the long table comes in sight. */
function redrawOnScroll(scroller, draw) {
  let frame = 0;
  const redraw = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  };
  scroller.addEventListener("scroll", redraw, { passive: true });
  addEventListener("resize", redraw);
}
