// The conversation stays at its end while an answer grows, unless its reader has scrolled up.

const NEAR = 48;
const scroller = document.getElementById("scroller");
const latest = document.getElementById("latest");
let following = true;

export function follow() {
  if (following) scroller.scrollTop = scroller.scrollHeight;
}

export function goToLatest() {
  following = true;
  latest.hidden = true;
  follow();
}

scroller.addEventListener("scroll", () => {
  following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
  latest.hidden = following;
});
latest.addEventListener("click", goToLatest);
new ResizeObserver(follow).observe(scroller);
