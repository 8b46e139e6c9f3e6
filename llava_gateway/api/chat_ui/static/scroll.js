// Scrolling: the page follows the end of a growing answer, unless the user has scrolled up.

const NEAR = 16; // pixels from the end that count as the end
const scroller = document.getElementById("scroller");
const latest = document.getElementById("latest");
let following = true;
let lastTop = 0; // the last scroll position at the end

// Scrolls to the end after text was added, unless the user has scrolled up.
export function follow() {
  if (scroller.scrollTop < lastTop) following = false; // the scroll event may come after the next piece of text
  if (following) toEnd();
}

// Scrolls to the end, and follows it from now on.
export function goToLatest() {
  following = true;
  latest.hidden = true;
  toEnd();
}

function toEnd() {
  scroller.scrollTop = scroller.scrollHeight;
  lastTop = scroller.scrollTop;
}

scroller.addEventListener("scroll", () => {
  following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
  latest.hidden = following;
  if (following) lastTop = scroller.scrollTop;
});
latest.addEventListener("click", goToLatest);
new ResizeObserver(() => following && toEnd()).observe(scroller);
