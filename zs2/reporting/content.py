"""The texts and numbers of a report, shared by the page and the Markdown. No torch here."""

from __future__ import annotations

from zs2.evaluation.metrics import METRICS
from zs2.sampling.request import DEFAULTS
from zs2.study.cells import Cell
from zs2.study.options import value_text
from zs2.study.results import EVERY, Entry, Results, Row, Sweep
from zs2.study.stats import Estimate, mean

ARROWS = {"higher": "\u00a0↑", "lower": "\u00a0↓", None: ""}
ENOUGH = 0.9  # a rank correlation below this is explained
FEW = 8  # prompts
AUTHORS_CLIPS = (
    "Motion is the mean absolute change between consecutive frames, pixels in [0, 1]. The authors' figures are "
    "measured in the clips that they published: 16 frames of 512×512, guided by poses, so that part of the motion is "
    "the pose's; λ at μ = 0.98, μ at λ = 0.1."
)
RANKS = "Rank correlation (Spearman's) of motion with the authors' figures:"


def summary(results: Results) -> list[str]:
    """What was run."""
    study = results.study
    weights = ", ".join(f"{part} {digest[:12]}" for part, digest in (study.weights or {}).items())
    chosen = {name: value_text(value) for name, value in study.sampling.items()}
    lines = [
        f"Model: {study.model} (SHA-256: {weights})",
        f"{len(study.cells)} variants × {len(study.prompts)} prompts × {len(study.seeds)} seeds; "
        f"{len(results.finished)} clips; frames: {study.frames} of {study.width}×{study.height}; "
        f"steps: {chosen['steps']} of {chosen['sampler']}; guidance {chosen['guidance']}; {study.dtype}",
    ]
    others = [name for name in chosen if name not in ("frames", "steps", "sampler", "guidance")]
    for name in others:
        if study.sampling[name] != DEFAULTS[name]:
            lines.append(f"{name.replace('_', ' ').capitalize()}: {chosen[name]}")
    if study.lora:
        lines.append(f"LoRA: {', '.join(str(one) for one in study.lora)}")
    if study.embeddings:
        lines.append(f"Embeddings: {', '.join(str(one) for one in study.embeddings)}")
    if results.protocol:
        clip = results.protocol.get("clip")
        lines.append(f"Measured by zs2 {results.protocol.get('zs2')}, with the CLIP of {clip}")
    lines.append(
        f"Reference: {results.full.label}. Differences to it are paired: same prompt, same seed. Intervals: 95 %, each "
        "by itself, by resampling whole prompts (expanded percentiles of the cluster bootstrap)"
    )
    return lines


def notes(results: Results) -> list[str]:
    """What a reader must know before reading a number."""
    study = results.study
    lines, gaps = [], results.gaps()
    if gaps:
        missing, unmeasured = sum(clips for _, clips, _ in gaps), sum(waiting for _, _, waiting in gaps)
        cells = ", ".join(f"{cell.label} ({clips + waiting})" for cell, clips, waiting in gaps)
        lines.append(
            f"Not complete: {missing} clips are missing and {unmeasured} not measured, of {cells}. Until zs2.ablate is "
            "run again to the end, means rest on different clips: compare by the paired differences, which take what "
            "both have. Sweeps take what all their values have."
        )
    if not results.measures:
        return [*lines, "Nothing is measured yet, so there are no tables."]
    stills = [cell.label for cell in study.cells if cell.still]
    found = f" Here these are still, for comparison: {'; '.join(stills)}." if stills else ""
    lines.append(
        "↑ and ↓ are the way that papers call better. A still picture is the best there is by every consistency, SSIM "
        f"and flow warp error: read them next to the motion.{found}"
    )
    lines.append(
        "“No difference seen” where an interval covers 0: that is not proof that there is none. And of twenty "
        "intervals one is expected to miss 0 where nothing differs."
    )
    if results.protocol and not results.protocol.get("comparable", True):
        lines.append(
            "The CLIP that scored is the checkpoint's own, small one: its scores compare only with each other."
        )
    if any(not prompt.text.strip() for prompt in study.prompts):
        lines.append("The empty prompt has no CLIP score: there is nothing that its clips should show.")
    if len(results.sets) > 1:
        lines.append("Closed prompts name thing and background; open ones leave the look to the noise.")
    few = [f"{count} {name}" for name in results.sets if (count := prompt_count(results, name)) < FEW]
    if few:
        lines.append(f"Few prompts ({', '.join(few)}): their intervals are rough, and speak for these prompts only.")
    return lines


def prompt_count(results: Results, name: str) -> int:
    """How many prompts are in a set."""
    return sum(name in (prompt.set, EVERY) for prompt in results.study.prompts)


def prompt_list(results: Results) -> list[str]:
    """All prompts, numbered as in the names of clips."""
    return [f"{i:02} {prompt.set}: “{prompt.text}”" for i, prompt in enumerate(results.study.prompts)]


def heads(results: Results) -> list[str]:
    """The titles of the metrics, with an arrow to the better side, and what a still clip has."""
    return [METRICS[name].title + ARROWS[METRICS[name].better] + _still(results, name) for name in results.metrics]


def _still(results: Results, metric: str) -> str:
    """The value of the still control: the same for every still clip, or the mean of the study's frozen frames."""
    value = METRICS[metric].still
    frozen = next((cell.id for cell in results.study.cells if cell.frozen), None)
    if value is None and frozen is not None:
        found = mean(results.values(frozen, metric))
        value = None if found is None else found.value
    return "" if value is None else f" (still: {number(value)})"


def definitions(results: Results) -> list[str]:
    """What each metric of the tables means."""
    return [f"{METRICS[name].title}: {METRICS[name].meaning}" for name in results.metrics]


def number(value: float | None) -> str:
    """Three significant digits or four, in plain notation."""
    return "–" if value is None else numbers(value)[0]


def numbers(*values: float) -> list[str]:
    """Numbers with as many decimals as suit the largest. A number that only rounds to 0 is ≈0."""
    size = max(map(abs, values))
    places = next((n for n, least in ((2, 10), (3, 1), (4, 0.01), (5, 0.0001)) if size >= least), 6)
    return [_plain(value, places) for value in values]


def _plain(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    if float(text):
        return text.replace("-", "−")
    return "≈0" if value else "0"


def estimate(found: Estimate | None, signed: bool = False) -> list[str]:
    """An estimate, and its interval if it has one."""
    if found is None:
        return ["–"]
    if found.low is None or found.high is None:
        texts = numbers(found.value)
    else:
        texts = numbers(found.value, found.low, found.high)
        texts[1:] = [f"[{texts[1]}, {texts[2]}]"]
    if signed and found.value > 0:
        texts[0] = f"+{texts[0]}"
    return texts


def difference(change: Estimate) -> list[str]:
    """A paired difference with its interval, and a remark if the interval covers 0."""
    if change.low is None:
        return [*estimate(change, signed=True), "one prompt: no interval"]
    return [*estimate(change, signed=True), *["no difference seen"] * change.none_seen]


def mark(cell: Cell, results: Results) -> str:
    """The remark below a variant's label, or an empty text."""
    if cell.id == results.study.full:
        return "reference"
    return "still" if cell.still else ""


def ablation_row(results: Results, row: Row) -> list[list[str]]:
    """A row of an ablation table. Each cell is some lines of text."""
    kind = mark(row.cell, results)
    return [[row.cell.label, *[kind] * bool(kind)], [str(row.clips)], *map(_entry, row.entries)]


def _entry(entry: Entry) -> list[str]:
    if entry.value is None:
        return ["–"]
    return [number(entry.value.value), *(difference(entry.change) if entry.change else [])]


def sweep_title(sweep: Sweep) -> str:
    """What a sweep shows."""
    return f"Motion against {sweep.parameter}, at {sweep.fixed}"


def sweep_rows(sweep: Sweep) -> list[list[list[str]]]:
    """The figures of a sweep: the authors', then for each set of prompts the study's, with their intervals."""
    rows = [[["the authors'"], *([f"{value:.4f}"] for value in sweep.authors)]]
    return rows + [[[name], *map(estimate, estimates)] for name, estimates in sweep.motion.items()]


def rank_lines(sweep: Sweep) -> list[str]:
    """The rank correlations of a sweep with the authors' figures, explained where they are low."""
    lines = []
    for name, rank in sweep.ranks.items():
        why = "" if rank is None or rank.value >= ENOUGH else f". {_why(sweep, name)}"
        lines.append(f"{name} prompts: {' '.join(estimate(rank))}{why}")
    return lines


def _why(sweep: Sweep, name: str) -> str:
    """Why an order is not the authors': the steps from one value to the next that go the other way."""
    against = []
    for i, step in enumerate(sweep.steps[name]):
        theirs = sweep.authors[i + 1] - sweep.authors[i]
        if step is not None and step.value * theirs <= 0:
            against.append(f"{sweep.at[i]:g} → {sweep.at[i + 1]:g}: {' '.join(difference(step))}")
    means = [found.value for found in sweep.motion[name] if found is not None]
    low, high = numbers(min(means), max(means))
    return (
        f"Below {ENOUGH:g}, because motion does not go the authors' way in these steps of {sweep.parameter}: "
        f"{'; '.join(against) or 'none from one value to the next, but some over more'}. "
        f"Over the whole sweep it is from {low} to {high}"
    )


def noise_heads(results: Results) -> list[str]:
    """The columns of the table of noises."""
    return ["noise", *(METRICS[name].title for name in results.noise_metrics)]


def noise_rows(results: Results) -> list[list[str]]:
    """For each noise model, the metrics of its initial noises: their correlation, measured and in theory."""
    rows: dict[str, list[str]] = {}
    for cell in results.study.cells:
        means = [mean(results.values(cell.id, metric)) for metric in results.noise_metrics]
        if any(means) and not cell.frozen:
            values = (number(None if found is None else found.value) for found in means)
            rows[cell.noise_label] = [cell.noise_label, *values]
    return list(rows.values())
