"""Measuring a clip with all metrics, and the protocol, which records how. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zs2.checkpoints.hub import DEFAULT_MODEL, STANDARD_CLIP
from zs2.errors import InputError
from zs2.evaluation.metrics import METRICS
from zs2.system.registry import load
from zs2.version import __version__
from zs2.video.clip import Clip
from zs2.video.formats import Frames

if TYPE_CHECKING:
    from zs2.evaluation.clip_scorer import Scorer
    from zs2.evaluation.lpips import LPIPS

DEFAULT_CLIPS = f"{DEFAULT_MODEL} for its own clips, else {STANDARD_CLIP}"  # the CLIPs of `measure_files`
LPIPS_HELP = "the weights of LPIPS: a safetensors file of lpips.LPIPS(net='alex') (default: LPIPS is left out)"
DIGITS = 9  # significant ones that are stored, so that the same clip gives the same bytes
UNNAMED = (  # the metrics of protocols that name none: those that there were when protocols did not
    "clip-score",
    "clip-frame-consistency",
    "clip-all-pairs",
    "clip-first",
    "motion",
    "ssim",
    "flow-warp-error",
    "noise-correlation",
    "noise-correlation-expected",
)


def measure(
    frames: Frames, prompt: str | Sequence[str], scorer: Scorer, more: Mapping[str, Any] | None = None
) -> dict[str, float | None]:
    """The metrics of a clip that need no other inputs than these, to 9 significant digits, in the order of METRICS.

    A metric is None where it has no meaning, such as the CLIP score of the empty prompt, which no frame can show.

    Args:
        frames: uint8 (F, H, W, 3). Each is encoded once.
        prompt: one text, or one a frame, of which the last repeats. Each frame is scored by its own.
        scorer: the CLIP.
        more: further inputs by their names, such as `noises` and `method`: see metrics.py. An input is None for a clip
            that has none; the metrics that need it are then None.
    Raises: InputError for other frames, no prompt, or more prompts than frames.
    """
    frames = Clip(frames).frames
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not 1 <= len(prompts) <= len(frames):
        raise InputError(f"{len(prompts)} prompts for {len(frames)} frames: expected one, or one a frame")
    images, texts = scorer.embed_frames(frames), scorer.embed_texts(prompts)
    own = [min(i, len(prompts) - 1) for i in range(len(frames))]  # each frame's prompt
    prompted = [i for i, index in enumerate(own) if prompts[index].strip()]
    inputs = {
        "frames": frames,
        "images": images,
        "prompted_images": images[prompted] if prompted else None,
        "texts": texts[own][prompted] if prompted else None,
        **(more or {}),
    }
    values: dict[str, float | None] = {}
    for metric in METRICS.values():
        if inputs.keys() >= set(metric.needs):
            arguments = [inputs[name] for name in metric.needs]
            complete = all(argument is not None for argument in arguments)
            values[metric.name] = rounded(load(metric.compute)(*arguments)) if complete else None
    return values


def measure_files(
    paths: Sequence[str], clip: str | None = None, device: str | None = None, lpips: str | None = None
) -> tuple[Scorer, dict[str, Any], dict[str, Any], dict[str, dict[str, float | None]]]:
    """Measure clips in files. All of them are opened before any is measured.

    Args: paths: lossless clips. clip: the CLIP that scores, by default as DEFAULT_CLIPS says. device: where it runs.
        lpips: the file of LPIPS's weights; without it that metric is left out.
    Returns: the CLIP, the protocol, and for each path the prompt of its settings, and its metrics.
    Raises: InputError for a file that is no clip, and for a clip without a prompt.
    """
    clips, prompts = dict[str, dict[str, Any]](), dict[str, list[str]]()
    for path in paths:
        opened = Clip.open(path)
        clips[path], prompts[path] = opened.settings, prompts_of(path, opened.settings, len(opened.frames))

    from zs2.evaluation.clip_scorer import Scorer
    from zs2.evaluation.lpips import LPIPS
    from zs2.system.devices import choose_device

    more: dict[str, Any] = {} if lpips is None else {"lpips": LPIPS.read(lpips)}
    own = all(settings.get("model") == Path(DEFAULT_MODEL).name for settings in clips.values())
    clip = (DEFAULT_MODEL if own else STANDARD_CLIP) if clip is None else clip
    scorer = Scorer.from_pretrained(clip, choose_device(device))
    rows = {path: measure(Clip.open(path).frames, prompts[path], scorer, more) for path in clips}
    said = {path: settings["prompt"] for path, settings in clips.items()}
    return scorer, protocol(scorer, scorer.name, more.get("lpips")), said, rows


def prompts_of(path: str, settings: dict[str, Any], frames: int) -> list[str]:
    """A clip's prompt, or one a frame; in a schedule, between two frames, the nearer one's.

    Raises: InputError if its settings have none.
    """
    prompt = settings.get("prompt")
    if isinstance(prompt, dict) and prompt and all(key.isdecimal() and len(key) < 10 for key in prompt):
        keys, is_cut = {int(key): key for key in prompt}, settings.get("travel_mode") == "cut"
        near = [min(keys, key=lambda key: (is_cut and key > k, abs(key - k))) for k in range(frames)]
        prompt = [prompt[keys[key]] for key in near]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts) or not prompts:
        raise InputError(f"{path}: its settings have no prompt: only clips made from a prompt can be scored")
    return prompts


def rounded(value: float | None) -> float | None:
    """A metric as it is stored."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


def protocol(scorer: Scorer, name: str, lpips: LPIPS | None = None) -> dict[str, Any]:
    """By what clips are measured now. name: what to call the CLIP."""
    from zs2.evaluation.optical_flow import opencv

    cv2 = opencv()
    return {
        "clip": name,
        "clip_sha256": scorer.digests,
        "comparable": scorer.comparable,
        "opencv": None if cv2 is None else cv2.__version__,
        "lpips": None if lpips is None else lpips.digest,
        "zs2": __version__,
        "metrics": definitions(),
    }


def definitions() -> list[str]:
    """The metrics of today, each with the revision of its definition: see `Metric.definition`."""
    return [metric.definition for metric in METRICS.values()]


def measured_metrics(protocol: Mapping[str, Any]) -> frozenset[str]:
    """The metrics that were measured by a protocol, as `definitions` has them."""
    return frozenset(protocol.get("metrics", UNNAMED))


def of_today(metrics: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a clip's metrics by their names. One that a protocol measured by another definition is None."""
    before = {name.partition("@")[0]: name for name in measured_metrics(protocol)}
    return {
        name: metrics.get(name) if before.get(name, name) == metric.definition else None
        for name, metric in METRICS.items()
    }


def differences(protocol: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two protocols differ, so that their measures can't be compared. Their metrics may differ."""
    return [key for key in {**protocol, **other} if key != "metrics" and protocol.get(key) != other.get(key)]


def is_valid(stored: object, current: Mapping[str, Any]) -> bool:
    """Whether measures of the stored protocol stand for those of the current one: alike, and no metric is missing."""
    if not isinstance(stored, dict):
        return False
    return not differences(stored, current) and measured_metrics(stored) >= measured_metrics(current)
