"use strict";
// The report's clips. All text from the study goes in by textContent, so it can't become markup. votes.js follows.
const study = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const keyOf = (cell, prompt, seed) => JSON.stringify([cell, prompt, seed]);
const names = new Map(Object.entries(study.clips).map(([name, clip]) => [keyOf(clip.cell, clip.prompt, clip.seed), name]));
const labels = Object.fromEntries([...study.inputs, ...study.cells].map((cell) => [cell.id, cell.label]));
const textOf = (prompt) => `${prompt.text.trim() === "" ? "(empty prompt)" : prompt.text} · ${prompt.set}`;

function create(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function option(value, text) {
  const element = create("option", text);
  element.value = value;
  return element;
}

// --- drawing ----------------------------------------------------------------------------------------------------------

const ROW = 8;  // frames in a row of a contact sheet
const images = [];

function picture(name) {  // of all frames of a clip, loaded when it is first needed
  const address = study.clips[name].picture;
  if (!images[address]) {
    images[address] = new Image();
    images[address].src = study.pictures[address];
    images[address].decode().then(show);
  }
  return images[address];
}

function draw(canvas) {  // the clock's frame of the canvas's clip, or all frames on a contact sheet
  const { size: [width, height], columns } = study.clips[canvas.dataset.name], image = picture(canvas.dataset.name);
  const sheet = canvas.classList.contains("sheet"), shown = sheet ? study.frames : 1, gap = sheet ? 2 : 0;
  const across = Math.min(shown, ROW), down = Math.ceil(shown / ROW);
  canvas.width = across * (width + gap) - gap;
  canvas.height = down * (height + gap) - gap;
  if (!image.complete) return;
  for (let i = 0; i < shown; i++) {
    const frame = sheet ? i : clock.frame;
    canvas.getContext("2d").drawImage(image, (frame % columns) * width, Math.floor(frame / columns) * height, width, height,
      (i % ROW) * (width + gap), Math.floor(i / ROW) * (height + gap), width, height);
  }
}

// --- one clock for all clips ------------------------------------------------------------------------------------------

const clock = { frame: 0, running: false, since: 0 };

function show() {
  for (const canvas of document.querySelectorAll("canvas[data-name]")) draw(canvas);
  by("frame").value = clock.frame;
  by("at").textContent = `${clock.frame + 1} of ${study.frames}`;
}

function tick(now) {
  const wait = 1000 / (study.fps * Number(by("speed").value));
  if (clock.running && now - clock.since >= wait) {
    clock.frame = (clock.frame + 1) % study.frames;
    clock.since = now - clock.since < 2 * wait ? clock.since + wait : now;
    show();
  }
  requestAnimationFrame(tick);
}

function run(running) {
  clock.running = running;
  clock.since = performance.now();
  for (const button of document.querySelectorAll("button.play")) button.textContent = running ? "pause" : "play";
}

function step(frames) {
  run(false);
  clock.frame = (clock.frame + frames + study.frames) % study.frames;
  show();
}

// --- the clips of a prompt and seed -----------------------------------------------------------------------------------

function clipOf(cell, prompt, seed, sheet) {  // a clip with its caption
  const name = names.get(keyOf(cell, prompt, seed)), figure = document.createElement("figure"), caption = create("figcaption", labels[cell]);
  if (cell === study.full) caption.append(" (reference)");
  if (name) {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `clip of ${labels[cell]}`);
    canvas.classList.toggle("sheet", sheet);
    canvas.classList.toggle("square", study.square);
    canvas.dataset.name = name;
    figure.append(canvas);
  }
  caption.append(create("small", name ? study.clips[name].caption : "missing"));
  figure.append(caption);
  return figure;
}

function browse() {
  const stage = by("stage"), sheet = by("view").value === "sheet";
  stage.classList.toggle("sheet", sheet);
  stage.classList.toggle("small", by("size").value === "small");
  by("transport").hidden = sheet;
  stage.replaceChildren(...[...study.inputs, ...study.cells].map((cell) => clipOf(cell.id, Number(by("prompt").value), Number(by("seed").value), sheet)));
  show();
}

function browseMain() {  // the picture at the top: the corners of the ablation
  by("main").replaceChildren(...study.corners.cells.map((cell) => clipOf(cell, Number(by("main-prompt").value), study.seeds[0], false)));
  show();
}

for (const id of ["prompt", "main-prompt"]) study.prompts.forEach((prompt, i) => by(id).append(option(i, textOf(prompt))));
by("main-prompt").value = study.corners.prompt;
by("main-prompt").addEventListener("change", browseMain);
study.seeds.forEach((seed) => by("seed").append(option(seed, seed)));
for (const element of document.querySelectorAll(".scripted")) element.hidden = false;
by("frame").max = study.frames - 1;
for (const id of ["prompt", "seed", "view", "size"]) by(id).addEventListener("change", browse);
for (const id of ["choose", "voting"]) by(id).addEventListener("submit", (event) => event.preventDefault());
for (const button of document.querySelectorAll("button.play")) button.addEventListener("click", () => run(!clock.running));
by("frame").addEventListener("input", () => step(Number(by("frame").value) - clock.frame));
by("stage").addEventListener("keydown", (event) => {
  if (event.key === " ") run(!clock.running);
  else if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
  else return;
  event.preventDefault();
});
