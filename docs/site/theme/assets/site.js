// Corrects what the theme's script does to a page: it makes a nav without a name for each code block, and tables and code that
// scroll sideways without the keyboard, code only on a touch screen.
const SCROLLERS = ".md-typeset__scrollwrap, .md-content pre > code";

function correct() {
  for (const nav of document.querySelectorAll("nav.md-code__nav:not([role])")) nav.setAttribute("role", "presentation");
  for (const scroller of document.querySelectorAll(SCROLLERS)) {
    const scrolls = scroller.scrollWidth > scroller.clientWidth;
    if (scrolls && scroller.tabIndex !== 0) scroller.tabIndex = 0;
    if (!scrolls && scroller.hasAttribute("tabindex")) scroller.removeAttribute("tabindex");
  }
}

addEventListener("resize", correct);
new MutationObserver(correct).observe(document.body, { childList: true, subtree: true, attributeFilter: ["tabindex"] });
correct();
