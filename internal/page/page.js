// Keeps the live part of the page live. Without this script the page is loaded
// anew every few seconds.
"use strict";
(() => {
  const live = document.getElementById("live");
  const pulse = document.getElementById("pulse");
  if (!live || !window.EventSource) return;
  let source = null;

  const say = (text, bad) => {
    pulse.textContent = text;
    pulse.classList.toggle("off", bad);
  };

  // What one reads, marks or has reached by keyboard stays as it is.
  const show = (html) => {
    const marked = document.getSelection();
    if (marked && !marked.isCollapsed && live.contains(marked.anchorNode)) return say("paused: text is marked", false);
    const held = live.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const scrolled = [...live.querySelectorAll(".scroll")].map((x) => x.scrollLeft);
    live.innerHTML = html;
    live.querySelectorAll(".scroll").forEach((x, i) => { x.scrollLeft = scrolled[i] || 0; });
    if (held) {
      const again = [...live.querySelectorAll("a")].find((a) => a.getAttribute("href") === held);
      if (again) again.focus({ preventScroll: true });
    }
    say("live", false);
  };

  const open = () => {
    if (source) return;
    source = new EventSource(live.dataset.events);
    source.addEventListener("live", (e) => show(e.data));
    source.onerror = () => {
      say("no answer; what you see is old", true);
      // A server that refuses is asked again; one that is gone, by the browser.
      if (source.readyState === EventSource.CLOSED) { close(); setTimeout(open, 3000); }
    };
  };
  const close = () => { if (source) source.close(); source = null; };

  // Nothing is asked for while nobody looks.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  open();
})();
