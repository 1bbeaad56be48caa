// A label of the theme's own hides what a button or a folded cell says of itself: "Show code cell content".
const unlabel = () => {
  for (const element of document.querySelectorAll("summary[aria-label], .search-button-field[aria-label]")) {
    element.removeAttribute("aria-label");
  }
};

// The widget manager typesets its labels through the queue of MathJax 2; the pages have MathJax 3.
const queue = () => {
  const mathjax = window.MathJax;
  if (mathjax?.startup) {
    const typeset = ([, , element]) => {
      mathjax.startup.promise = mathjax.startup.promise.then(() => mathjax.typesetPromise([element]));
    };
    mathjax.Hub = { Queue: typeset };
  }
};

// It writes a slider's name beside the slider, where a screen reader does not look, with a tooltip that says "null".
const nameSliders = () => {
  const observer = new MutationObserver(() => {
    for (const handle of document.querySelectorAll(".widget-slider [role=slider]:not([aria-label])")) {
      const label = handle.closest(".widget-slider").querySelector("label");
      handle.setAttribute("aria-label", label.textContent);
      label.removeAttribute("title");
    }
  });
  for (const view of document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]')) {
    observer.observe(view.parentElement, { childList: true, subtree: true });
  }
};

// What was printed in columns keeps them, and scrolls on a phone, also by keyboard; sentences are wrapped.
const keepColumns = () => {
  for (const printed of document.querySelectorAll(".cell_output .stream pre")) {
    const lines = printed.textContent.split("\n");
    const aligned = lines.filter((line) => /^ {2,}\S|\S {2,}\S/.test(line)).length;
    if (aligned > 1 && lines.every((line) => line.length <= 110)) {
      printed.classList.add("columns");
      printed.tabIndex = 0;
    }
  }
};

document.addEventListener("DOMContentLoaded", () => {
  keepColumns();
  unlabel();
  queue();
  nameSliders();
});
