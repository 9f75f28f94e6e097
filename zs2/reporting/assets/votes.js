// The blind comparison: votes, the booth in which they are cast, and their results. It uses clips.js.

const CHOICES = ["left", "right", "tie", "skip"], KEY = `zs2-votes-${study.digest}`, MOST = 100000;
let votes = [], strangers = [], queue = [], current = null;
const voter = () => by("voter").value.trim() || by("voter").placeholder;
const pairOf = ({ left, right }) => JSON.stringify([left, right].sort());

function checked(vote) {  // a vote that this page could have; throws for any other
  const { voter, left, right, choice } = vote ?? {};
  if (typeof voter !== "string" || voter.trim() === "" || voter.length > 40) throw new Error("a vote says no voter");
  if (![left, right].every((name) => Object.hasOwn(study.clips, name))) throw new Error("a vote is on a clip that is not here");
  const a = study.clips[left], b = study.clips[right];
  if (a.cell === b.cell || a.prompt !== b.prompt || a.seed !== b.seed) throw new Error("a vote is on two clips that are no pair");
  if (!CHOICES.includes(choice)) throw new Error(`a vote is none of ${CHOICES.join(", ")}`);
  return { voter, left, right, choice };
}

function add(list) {  // adds the votes that are new; returns how many
  const before = votes.length, keyOfVote = (vote) => JSON.stringify([vote.voter, pairOf(vote)]);
  const known = new Set(votes.map(keyOfVote));
  for (const vote of list) {
    if (!known.has(keyOfVote(vote))) votes.push(vote);
    known.add(keyOfVote(vote));
  }
  return votes.length - before;
}

function store() {  // a page opened from disk may have no storage: then votes last as long as the page
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
  const found = [], voted = new Set(votes.filter((vote) => vote.voter === voter()).map(pairOf));
  for (let prompt = 0; prompt < study.prompts.length; prompt++) for (const seed of study.seeds) {
    study.cells.forEach((a, i) => study.cells.slice(i + 1).forEach((b) => {
      if (by("pairs").value === "full" && a.id !== study.full && b.id !== study.full) return;
      const left = names.get(keyOf(a.id, prompt, seed)), right = names.get(keyOf(b.id, prompt, seed));
      if (!left || !right || study.clips[left].picture === study.clips[right].picture) return;
      if (!voted.has(pairOf({ left, right }))) found.push({ left, right });
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
  const cast = votes.filter((vote) => vote.voter === voter()).length, left = queue.length + (current ? 1 : 0);
  by("done").max = Math.max(1, cast + left);
  by("done").value = cast;
  by("count").textContent = `${cast} given, ${left} to go`;
  for (const button of by("booth").querySelectorAll("[data-vote]")) {
    button.disabled = button.dataset.vote === "undo" ? cast === 0 : !current;
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
    const head = create("th", labels[first]), share = create("td", percent(k / n));
    head.scope = "row";
    share.append(create("i", low > 0.5 ? "▲" : high < 0.5 ? "▼" : ""));
    line.append(head, create("td", labels[second]), ...[won, tied, lost].map((count) => create("td", count)), share,
      create("td", percent(low)), create("td", percent(high)));
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
    const content = JSON.parse(await file.text());
    if (content?.zs2_votes !== 1) throw new Error("it is no file of votes");
    if (content.study !== study.digest) throw new Error("its votes are on another study, or on this one with other prompts");
    if (!Array.isArray(content.votes) || content.votes.length > MOST) throw new Error("it has no list of votes");
    const list = content.votes.map(checked), fresh = add(list);
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
browseMain();
run(!matchMedia("(prefers-reduced-motion: reduce)").matches);
requestAnimationFrame(tick);
