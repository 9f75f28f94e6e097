"""The texts of a report, shared by the page and the Markdown. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zs2.sampling.request import DEFAULTS
from zs2.study.inputs import record_text
from zs2.study.options import value_text
from zs2.study.results import EVERY, Results, is_ranked
from zs2.study.stats import FEWEST

FEW = 8  # prompts
AUTHORS_CLIPS = (
    "Motion is the mean absolute change between consecutive frames, pixels in [0, 1]. The authors' figures are "
    "measured in the clips that they published: 16 frames of 512×512, guided by poses, so that part of the motion is "
    "the pose's; λ at μ = 0.98, μ at λ = 0.1."
)


def _file(record: Mapping[str, Any]) -> str:
    """A file of weights, as study.json records it, as words: its digests are cut."""
    words = {name: str(value)[:12] if name in ("sha256", "config") else value for name, value in record.items()}
    return ", ".join(f"{'SHA-256' if name == 'sha256' else name} {value}" for name, value in words.items())


def summary(results: Results) -> list[str]:
    """What was run."""
    study = results.study
    weights = ", ".join(f"{part} {digest[:12]}" for part, digest in (study.weights or {}).items())
    chosen = {
        name: record_text(value) if isinstance(value, dict | list) else value_text(value)
        for name, value in study.sampling.items()
    }
    lines = [
        f"Model: {study.model} (SHA-256: {weights})",
        f"{size(results)}; frames: {study.frames} of {study.width}×{study.height}; "
        f"steps: {chosen['steps']} of {chosen['sampler']}; guidance {chosen['guidance']}; {study.dtype}",
    ]
    others = [name for name in chosen if name not in ("frames", "steps", "sampler", "guidance")]
    for name in others:
        if study.sampling[name] != DEFAULTS[name]:
            lines.append(f"{name.replace('_', ' ').capitalize()}: {chosen[name]}")
    for name, files in {"LoRA": study.lora, "Embeddings": study.embeddings, "ControlNets": study.controlnet}.items():
        if files:
            lines.append(f"{name}: {'; '.join(map(_file, files))}")
    if results.protocol:
        clip = results.protocol.get("clip")
        lines.append(f"Measured by zs2 {results.protocol.get('zs2')}, with the CLIP of {clip}")
    lines.append(f"Reference: {results.full.label}. Differences to it are paired: same prompt, same seed")
    if has_intervals(results):
        lines.append(
            "Intervals: 95 %, each by itself, by resampling whole prompts (expanded percentiles of the cluster "
            "bootstrap)"
        )
    return lines


def size(results: Results) -> str:
    """How large the study is."""
    study = results.study
    counts = ((study.cells, "variant"), (study.prompts, "prompt"), (study.seeds, "seed"))
    product = " × ".join(counted(len(things), noun) for things, noun in counts)
    return f"{product}; {counted(len(results.finished), 'clip')}"


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 clip, 2 clips."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def warnings(results: Results) -> list[str]:
    """What a reader must know before reading a number."""
    lines, gaps = [], results.gaps()
    if gaps:
        missing, unmeasured = sum(clips for _, clips, _ in gaps), sum(waiting for _, _, waiting in gaps)
        lines.append(f"Not complete: {counted(missing, 'clip')} missing, {unmeasured} not measured.")
    if not results.metrics:
        why = "No metric has a value of these clips" if results.measures else "Nothing is measured yet"
        return [*lines, f"{why}, so there are no tables."]
    few = [f"{count} {name}" for name in results.sets if (count := prompt_count(results, name)) < FEW]
    if few:
        what = "the intervals are rough, and" if has_intervals(results) else "the figures"
        lines.append(
            f"Few prompts ({', '.join(few)}): {what} speak for these prompts only. Fewer than {FEWEST} have no "
            "interval."
        )
    return lines


def notes(results: Results) -> list[str]:
    """How to read the numbers, and what they do not say."""
    study = results.study
    lines = []
    if gaps := results.gaps():
        cells = ", ".join(f"{cell.label} ({clips + waiting})" for cell, clips, waiting in gaps)
        lines.append(
            f"Clips that are missing or not measured: of {cells}. Until zs2.ablate is run again to the end, means rest "
            "on different clips: compare by the paired differences, which take what both have. Sweeps take what all "
            "their values have."
        )
    if not results.metrics:
        return lines
    stills = [cell.label for cell in study.cells if cell.still]
    found = f" Here these are still, for comparison: {'; '.join(stills)}." if stills else ""
    lines.append(
        "↑ and ↓ are the way that papers call better. A still picture is the best there is by every consistency, SSIM "
        f"and flow warp error: read them next to the motion.{found}"
    )
    if has_intervals(results):
        lines.append(
            "No difference is seen where an interval covers 0: that is not proof that there is none. And of twenty "
            "intervals one is expected to miss 0 where nothing differs."
        )
    if results.protocol and not results.protocol.get("comparable", True):
        lines.append(
            "The CLIP that scored is the checkpoint's own, small one: its scores compare only with each other."
        )
    if results.protocol and not results.protocol.get("lpips"):
        lines.append("LPIPS was not measured, since no weights of it were given: zs2 ablate --lpips FILE.")
    if any(not prompt.text.strip() for prompt in study.prompts):
        lines.append("The empty prompt has no CLIP score: there is nothing that its clips should show.")
    if any(map(is_ranked, study.cells)):
        lines.append(
            "At equal motion λ, a or the pixels of each variant were searched on short clips, so that all move alike. "
            "Variants marked “own motion” have no such value, or can't reach the target; those marked with a motion, "
            "as “motion 0.034”, came no nearer. Neither is ranked."
        )
    if len(results.sets) > 1:
        lines.append("Closed prompts name thing and background; open ones leave the look to the noise.")
    return lines


def has_intervals(results: Results, prompts: str | None = None) -> bool:
    """Whether anything in the tables has an interval, of a set of prompts or of any."""
    rows = [row for name, table in results.tables.items() if prompts in (None, name) for row in table]
    return any(entry.value is not None and entry.value.low is not None for row in rows for entry in row.entries)


def prompt_count(results: Results, name: str) -> int:
    """How many prompts are in a set."""
    return sum(name in (prompt.set, EVERY) for prompt in results.study.prompts)


def prompt_list(results: Results) -> list[str]:
    """All prompts, numbered as in the names of clips."""
    return [f"{i:02} {prompt.set}: “{prompt.text}”" for i, prompt in enumerate(results.study.prompts)]
