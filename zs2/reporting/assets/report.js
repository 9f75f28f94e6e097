"use strict";
// The report's clips and its blind comparison. All text from the study goes in by textContent: it can't become markup.
const study = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const keyOf = (cell, prompt, seed) => JSON.stringify([cell, prompt, seed]);
const names = new Map(Object.entries(study.clips).map(([name, clip]) => [keyOf(clip.cell, clip.prompt, clip.seed), name]));
const labels = Object.fromEntries(study.cells.map((cell) => [cell.id, cell.label]));
const textOf = (prompt) => `${prompt.text.trim() === "" ? "(empty prompt)" : prompt.text} · ${prompt.set}`;

function made(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function option(value, text) {
  const element = made("option", text);
  element.value = value;
  return element;
}

// --- drawing ----------------------------------------------------------------------------------------------------------

const ROW = 8;  // frames in a row of a contact sheet
const images = [];

function picture(name) {  // of all frames of a clip, loaded when it is first wanted
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

function browse() {
  const stage = by("stage"), sheet = by("view").value === "sheet";
  stage.replaceChildren();
  stage.classList.toggle("sheet", sheet);
  by("transport").hidden = sheet;
  for (const cell of study.cells) {
    const name = names.get(keyOf(cell.id, Number(by("prompt").value), Number(by("seed").value)));
    const figure = document.createElement("figure"), caption = made("figcaption", cell.label);
    if (cell.id === study.full) caption.append(" (reference)");
    if (name) {
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `clip of ${cell.label}`);
      canvas.classList.toggle("sheet", sheet);
      canvas.classList.toggle("square", study.square);
      canvas.dataset.name = name;
      figure.append(canvas);
    }
    caption.append(made("small", name ? study.clips[name].said : "missing"));
    figure.append(caption);
    stage.append(figure);
  }
  show();
}

study.prompts.forEach((prompt, i) => by("prompt").append(option(i, textOf(prompt))));
study.seeds.forEach((seed) => by("seed").append(option(seed, seed)));
by("frame").max = study.frames - 1;
for (const id of ["prompt", "seed", "view"]) by(id).addEventListener("change", browse);
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

// --- votes ------------------------------------------------------------------------------------------------------------

const CHOICES = ["left", "right", "tie", "skip"], KEY = `zs2-votes-${study.digest}`, MOST = 100000;
let votes = [], strangers = [], queue = [], current = null;
const voter = () => by("voter").value.trim() || by("voter").placeholder;
const pairOf = ({ left, right }) => JSON.stringify([left, right].sort());

function checked(vote) {  // a vote that can have been given on this page; throws for any other
  const { voter, left, right, choice } = vote ?? {};
  if (typeof voter !== "string" || voter.trim() === "" || voter.length > 40) throw new Error("a vote says no voter");
  if (![left, right].every((name) => Object.hasOwn(study.clips, name))) throw new Error("a vote is on a clip that is not here");
  const a = study.clips[left], b = study.clips[right];
  if (a.cell === b.cell || a.prompt !== b.prompt || a.seed !== b.seed) throw new Error("a vote is on two clips that are no pair");
  if (!CHOICES.includes(choice)) throw new Error(`a vote is none of ${CHOICES.join(", ")}`);
  return { voter, left, right, choice };
}

function add(list) {  // votes that are not there yet; returns how many
  const before = votes.length, keyOfVote = (vote) => JSON.stringify([vote.voter, pairOf(vote)]);
  const known = new Set(votes.map(keyOfVote));
  for (const vote of list) {
    if (!known.has(keyOfVote(vote))) votes.push(vote);
    known.add(keyOfVote(vote));
  }
  return votes.length - before;
}

function store() {  // what is opened from disk may have no storage: then votes last as long as the page
  try {
    localStorage.setItem(KEY, JSON.stringify({ voter: voter(), votes: [...votes, ...strangers] }));
  } catch {
    by("message").textContent = "This browser keeps no votes of this page: export them before you close it.";
  }
}

function recall() {
  by("voter").placeholder = `voter-${Math.random().toString(36).slice(2, 8)}`;
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "null");
    if (!kept) return;
    by("voter").value = kept.voter;
    for (const vote of kept.votes) {
      try { add([checked(vote)]); } catch { strangers.push(vote); }
    }
    if (strangers.length) by("message").textContent = `Votes on clips that are not here: ${strangers.length}. They are kept, and do not count.`;
  } catch (error) {
    by("message").textContent = `The votes that this browser kept can't be read: ${error.message}.`;
  }
}

// --- the booth --------------------------------------------------------------------------------------------------------

function pairs() {  // those that the voter has not voted on, in random order and on random sides
  const found = [], given = new Set(votes.filter((vote) => vote.voter === voter()).map(pairOf));
  for (let prompt = 0; prompt < study.prompts.length; prompt++) for (const seed of study.seeds) {
    study.cells.forEach((a, i) => study.cells.slice(i + 1).forEach((b) => {
      if (by("pairs").value === "full" && a.id !== study.full && b.id !== study.full) return;
      const left = names.get(keyOf(a.id, prompt, seed)), right = names.get(keyOf(b.id, prompt, seed));
      if (!left || !right || study.clips[left].picture === study.clips[right].picture) return;
      if (!given.has(pairOf({ left, right }))) found.push({ left, right });
    }));
  }
  for (let i = found.length - 1; i > 0; i--) {  // Fisher–Yates
    const j = Math.floor(Math.random() * (i + 1));
    [found[i], found[j]] = [found[j], found[i]];
  }
  return found.map(({ left, right }) => (Math.random() < 0.5 ? { left, right } : { left: right, right: left }));
}

function next() {
  current = queue.shift() ?? null;
  const given = votes.filter((vote) => vote.voter === voter()).length, left = queue.length + (current ? 1 : 0);
  by("done").max = Math.max(1, given + left);
  by("done").value = given;
  by("count").textContent = `${given} given, ${left} to go`;
  for (const button of by("booth").querySelectorAll("[data-vote]")) {
    button.disabled = button.dataset.vote === "undo" ? given === 0 : !current;
  }
  by("question").textContent = current ? textOf(study.prompts[study.clips[current.left].prompt]) : "No more pairs. Thank you.";
  for (const side of ["left", "right"]) {
    by(side).hidden = !current;
    by(side).classList.toggle("square", study.square);
    if (current) by(side).dataset.name = current[side];
    else delete by(side).dataset.name;
  }
  clock.frame = 0;
  show();
}

function vote(choice) {
  if (choice === "undo") {
    const last = votes.findLastIndex((vote) => vote.voter === voter());
    if (last < 0) return;
    const [{ left, right }] = votes.splice(last, 1);
    if (current) queue.unshift(current);
    queue.unshift({ left, right });
  } else {
    if (!current) return;
    votes.push({ voter: voter(), ...current, choice });
  }
  store();
  next();
}

by("begin").addEventListener("click", () => {
  by("voter").value = voter();
  by("message").textContent = "";
  queue = pairs();
  next();
  by("booth").showModal();
  by("booth").focus();  // not a button, which Space would press
});
by("end").addEventListener("click", () => by("booth").close());
by("booth").addEventListener("close", () => { current = null; tally(); });
for (const button of by("booth").querySelectorAll("[data-vote]")) button.addEventListener("click", () => vote(button.dataset.vote));
by("booth").addEventListener("keydown", (event) => {
  const choice = { arrowleft: "left", arrowright: "right", arrowdown: "tie", s: "skip", u: "undo" }[event.key.toLowerCase()];
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (choice) vote(choice);
  else if (event.key === " " && event.target.tagName !== "BUTTON") run(!clock.running);
  else return;
  event.preventDefault();
});

// --- results ----------------------------------------------------------------------------------------------------------

function wilson(k, n) {  // Wilson 1927: the shares that k of n does not contradict at 95 %
  const z = 1.959963984540054, middle = (k + z * z / 2) / (n + z * z);
  const half = z / (n + z * z) * Math.sqrt(k * (n - k) / n + z * z / 4);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

function preferences(set) {  // a row for each pair of variants with votes, the reference first, else in their order
  const order = [study.full, ...study.cells.map((cell) => cell.id)], rows = new Map();
  for (const { left, right, choice } of votes) {
    if (choice === "skip" || (set && study.prompts[study.clips[left].prompt].set !== set)) continue;
    const cells = [study.clips[left].cell, study.clips[right].cell];
    const swapped = order.indexOf(cells[1]) < order.indexOf(cells[0]);
    const [first, second] = swapped ? cells.reverse() : cells, key = JSON.stringify([first, second]);
    const row = rows.get(key) ?? { first, second, won: 0, tied: 0, lost: 0 };
    if (choice === "tie") row.tied++;
    else if ((choice === "left") !== swapped) row.won++;
    else row.lost++;
    rows.set(key, row);
  }
  return [...rows.values()].sort((a, b) => order.indexOf(a.first) - order.indexOf(b.first) || order.indexOf(a.second) - order.indexOf(b.second));
}

function tally() {
  by("result").hidden = votes.length === 0;
  const voters = new Set(votes.map((vote) => vote.voter)).size, skipped = votes.filter((vote) => vote.choice === "skip").length;
  by("preferences").caption.textContent = `Votes: ${votes.length}, of voters: ${voters}; of these “can't say”: ${skipped}`;
  const body = by("preferences").tBodies[0];
  body.replaceChildren();
  for (const { first, second, won, tied, lost } of preferences(by("which").value)) {
    const n = won + tied + lost, k = won + tied / 2, line = document.createElement("tr");
    const [low, high] = wilson(k, n), percent = (share) => (100 * share).toFixed(0);
    const head = made("th", labels[first]), share = made("td", `${percent(k / n)} %`);
    head.scope = "row";
    share.append(made("small", `[${percent(low)}, ${percent(high)}]`));
    if (low <= 0.5 && high >= 0.5) share.append(made("small", "no preference seen"));
    line.append(head, made("td", labels[second]), ...[won, tied, lost].map((count) => made("td", count)), share);
    body.append(line);
  }
}

by("export").addEventListener("click", () => {
  const link = document.createElement("a");
  const text = JSON.stringify({ zs2_votes: 1, study: study.digest, votes }, null, 1);
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `votes-${study.digest}.json`;
  link.click();
  by("message").textContent = `Votes exported: ${votes.length}.`;
});
by("import").addEventListener("change", async () => {
  const file = by("import").files[0];
  if (!file) return;
  try {
    const said = JSON.parse(await file.text());
    if (said?.zs2_votes !== 1) throw new Error("it is no file of votes");
    if (said.study !== study.digest) throw new Error("its votes are on another study, or on this one with other prompts");
    if (!Array.isArray(said.votes) || said.votes.length > MOST) throw new Error("it has no list of votes");
    const list = said.votes.map(checked), fresh = add(list);
    by("message").textContent = `Votes imported: ${fresh}. Already here: ${list.length - fresh}.`;
    store();
    tally();
  } catch (error) {
    by("message").textContent = `Nothing imported from ${file.name}: ${error.message}.`;
  }
  by("import").value = "";
});
by("forget").addEventListener("click", () => {
  if (votes.length === 0 || !confirm(`Forget all votes on this page (${votes.length})? Those that are not exported are lost.`)) return;
  votes = [];
  strangers = [];
  by("message").textContent = "All votes are forgotten.";
  store();
  tally();
});
for (const set of new Set(study.prompts.map((prompt) => prompt.set))) by("which").append(option(set, `${set} prompts`));
by("which").addEventListener("change", tally);

recall();
tally();
browse();
run(!matchMedia("(prefers-reduced-motion: reduce)").matches);
requestAnimationFrame(tick);
