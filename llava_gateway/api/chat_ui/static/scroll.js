// The conversation stays at its end while an answer grows, unless its reader has scrolled up.

const NEAR = 16;
const scroller = document.getElementById("scroller");
const latest = document.getElementById("latest");
let following = true;
let left = 0; // where it was last moved to, or seen at its end

export function follow() {
  if (scroller.scrollTop < left) following = false; // the event that tells of it comes later than the next piece of text may
  if (following) toEnd();
}

export function goToLatest() {
  following = true;
  latest.hidden = true;
  toEnd();
}

function toEnd() {
  scroller.scrollTop = scroller.scrollHeight;
  left = scroller.scrollTop;
}

scroller.addEventListener("scroll", () => {
  following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
  latest.hidden = following;
  if (following) left = scroller.scrollTop;
});
latest.addEventListener("click", goToLatest);
new ResizeObserver(() => following && toEnd()).observe(scroller);
