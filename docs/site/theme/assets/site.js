// Corrects what the theme's script adds to a page: it makes a nav without a name for each code block, and tables that scroll
// sideways without the keyboard.
function correct() {
  for (const nav of document.querySelectorAll("nav.md-code__nav:not([role])")) nav.setAttribute("role", "presentation");
  for (const scroller of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (scroller.scrollWidth > scroller.clientWidth) scroller.tabIndex = 0;
    else scroller.removeAttribute("tabindex");
  }
}

addEventListener("resize", correct);
new MutationObserver(correct).observe(document.body, { childList: true, subtree: true });
correct();
