// Plays the films of the page on their canvases: see film.py. One clock, so that clips play in step.
(() => {
  "use strict";
  const kept = new Map(); // by the key of a film: its last picture, shown until the next one is decoded
  const queues = new Map(); // by the key of a film without end: the parts that wait to be played
  let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let frozen = performance.now();

  const keep = (film) => {
    const canvas = film.querySelector("canvas");
    let copy = kept.get(film.dataset.key);
    if (!copy) kept.set(film.dataset.key, (copy = document.createElement("canvas")));
    if (copy.width !== canvas.width || copy.height !== canvas.height) {
      copy.width = canvas.width;
      copy.height = canvas.height;
    }
    copy.getContext("2d").drawImage(canvas, 0, 0);
  };

  const place = (film, image, index) => {
    const canvas = film.querySelector("canvas");
    if (canvas.shown === image && canvas.dataset.index === String(index)) return; // nothing new to draw
    canvas.shown = image;
    const columns = Number(film.dataset.columns);
    const [w, h] = [canvas.width, canvas.height];
    canvas.getContext("2d").drawImage(image, (index % columns) * w, Math.floor(index / columns) * h, w, h, 0, 0, w, h);
    canvas.dataset.index = index;
    keep(film);
  };

  // What was there stays until the new picture is decoded: no flicker between previews.
  const restore = (film) => {
    const canvas = film.querySelector("canvas");
    const before = kept.get(film.dataset.key);
    if (before) canvas.getContext("2d").drawImage(before, 0, 0, canvas.width, canvas.height);
    if (film.dataset.part !== undefined) {
      const queue = queues.get(film.dataset.key);
      const part = Number(film.dataset.part);
      if (!queue || part === 0) queues.set(film.dataset.key, { parts: [film], last: part, begun: null });
      else if (part > queue.last) {
        queue.parts.push(film);
        queue.last = part;
      }
    }
  };

  // A film without end: the part on the page is the newest; the one that plays may be an older one.
  const playParts = (film, now) => {
    const queue = queues.get(film.dataset.key);
    const part = queue && queue.parts[0];
    if (!part) return;
    const image = part.querySelector("img");
    if (!image.complete) return;
    if (queue.begun === null) queue.begun = now;
    const index = Math.floor(((now - queue.begun) / 1000) * Number(part.dataset.fps));
    const count = Number(part.dataset.frames);
    if (index >= count && queue.parts.length > 1) {
      queue.parts.shift();
      queue.begun = null;
    }
    film.dataset.columns = part.dataset.columns;
    place(film, image, Math.min(index, count - 1));
  };

  const tick = (time) => {
    const now = paused ? frozen : time;
    for (const film of document.querySelectorAll(".film")) {
      const image = film.querySelector("img");
      if (film.dataset.part !== undefined) {
        if (!paused) playParts(film, now);
      } else if (image.complete && image.naturalWidth) {
        place(film, image, Math.floor((now / 1000) * Number(film.dataset.fps)) % Number(film.dataset.frames));
      }
    }
    document.querySelectorAll(".play").forEach(label);
    requestAnimationFrame(tick);
  };

  const label = (button) => {
    const text = paused ? "Play" : "Pause";
    if (button.textContent !== text) button.textContent = text;
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest(".play");
    if (!button) return;
    frozen = performance.now();
    paused = !paused;
  });

  new MutationObserver((changes) => {
    for (const change of changes)
      for (const node of change.addedNodes)
        if (node.nodeType === 1)
          for (const film of node.matches(".film") ? [node] : node.querySelectorAll(".film")) restore(film);
  }).observe(document.documentElement, { childList: true, subtree: true });
  requestAnimationFrame(tick);
})();
