// Plays the films of the page on their canvases: see film.py. One clock, so that clips play in step.
// Gradio changes the elements of a film in place, so what plays is kept here, by the key of the film.
(() => {
  "use strict";
  const LOOK = 50; // milliseconds between looks at what came, at most
  const MOST = 8; // parts of a film without end that wait to be played, while it is paused
  const films = new Map();
  let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let frozen = performance.now();

  // The picture that is on the page now, as it will be played.
  const read = (film) => {
    const canvas = film.querySelector("canvas");
    const image = new Image();
    image.src = film.querySelector("img").src;
    const { id, part, frames, columns, fps } = film.dataset;
    return { id, part, image, frames: +frames, columns: +columns, fps: +fps, w: canvas.width, h: canvas.height };
  };

  // What came since: a new picture takes the place of the old one when it is decoded; parts are played in their order.
  const update = (film) => {
    let state = films.get(film.dataset.key);
    if (!state) films.set(film.dataset.key, (state = { id: null, now: null, next: [], begun: 0, drawn: "" }));
    if (film.dataset.id !== state.id) {
      state.id = film.dataset.id;
      if (!film.dataset.part || film.dataset.part === "0") state.next = [];
      state.next.push(read(film));
      state.next = state.next.slice(-MOST);
    }
    return state;
  };

  // The picture to show and the index of its frame, at a time in milliseconds.
  const current = (state, now) => {
    const next = state.next.length && state.next[0].image.complete ? state.next[0] : null;
    const count = () => Math.floor(((now - state.begun) / 1000) * state.now.fps);
    const ended = !state.now || state.now.part === undefined || next?.part === "0" || count() >= state.now.frames;
    if (next && ended && !(paused && next.part > 0)) {
      state.now = state.next.shift();
      state.begun = now;
    }
    if (!state.now) return null;
    if (state.now.part !== undefined) return [state.now, Math.min(count(), state.now.frames - 1)];
    return [state.now, Math.floor((now / 1000) * state.now.fps) % state.now.frames];
  };

  const draw = (film, now) => {
    const state = update(film);
    const shown = current(state, now);
    if (!shown) return;
    const [one, index] = shown;
    const canvas = film.querySelector("canvas");
    const drawn = [one.id, index, canvas.width, canvas.height, Math.floor(now / 250)].join();
    if (drawn === state.drawn && canvas === state.canvas) return;
    [state.drawn, state.canvas] = [drawn, canvas];
    const [x, y] = [(index % one.columns) * one.w, Math.floor(index / one.columns) * one.h];
    canvas.getContext("2d").drawImage(one.image, x, y, one.w, one.h, 0, 0, canvas.width, canvas.height);
    canvas.shown = { index, id: one.id, part: one.part }; // for tests
  };

  // Look again when the next frame of a film is due.
  const tick = () => {
    const now = paused ? frozen : performance.now();
    let wait = LOOK;
    for (const film of document.querySelectorAll(".film")) {
      draw(film, now);
      if (paused) continue;
      const each = 1000 / film.dataset.fps;
      wait = Math.min(wait, each - (now % each) + 1);
    }
    const text = paused ? "Play" : "Pause";
    for (const button of document.querySelectorAll(".play")) if (button.textContent !== text) button.textContent = text;
    setTimeout(tick, wait);
  };

  document.addEventListener("click", (event) => {
    if (!event.target.closest?.(".play")) return;
    const now = performance.now();
    if (paused) for (const state of films.values()) state.begun += now - frozen;
    frozen = now;
    paused = !paused;
  });
  tick();
})();
