"""How a clip was made: the settings that each of its files contains, and that `--replay` reads."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import PIL
import torch

from zs2.sampling.plan import SamplingPlan
from zs2.sampling.request import FIRST, OPTIONS
from zs2.sampling.schedule import options_of
from zs2.version import REVISION, __version__

if TYPE_CHECKING:
    from torch import Tensor

    from zs2.checkpoints.checkpoint import Checkpoint
    from zs2.models.prompt_encoder import Encoded


def clip_settings(
    plan: SamplingPlan,
    fps: int | Fraction,
    checkpoint: Checkpoint | None = None,
    lora: Sequence[dict[str, Any]] = (),
    embeddings: Sequence[dict[str, Any]] = (),
    controlnet: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The settings that decide a clip, as JSON: no path, time or host. A setting without effect is None.

    Args: fps: frames per second. checkpoint: that of the model. lora: the LoRAs that were merged into it.
        embeddings: the textual inversions that were added to it. controlnet: the ControlNets that steer it.
    """
    request, latents = plan.request, plan.request.latents
    height, width = plan.size
    stored = {name: request.stored(name) for name in OPTIONS} | options_of(plan.solver.schedule.config)
    # Without a first frame that of older files, so that a stream of before goes on and its clip is known.
    stored["first_frame_noise"] = request.noise_of_first_frame or OPTIONS["first_frame_noise"].unstated
    part = {} if request.part_of is None else {"part_of": request.part_of}
    return {
        "prompt": _stored(request.prompt),
        **{name: stored.pop(name) for name in FIRST},
        "seed": request.seed if latents is None else None,
        "width": width,
        "height": height,
        "fps": fps if isinstance(fps, int) else str(fps),
        "chunk": plan.chunk,  # the last bits depend on it, and on the number of processes
        "processes": 1 if plan.group is None else plan.group.size,
        **plan.method.settings(request.steps, latents is not None),
        "latents": _digest(latents),
        "context": _digest(request.context),
        "negative_context": _digest(request.negative_context),
        "dtype": str(plan.model.dtype).removeprefix("torch."),
        "device": plan.model.device.type,
        "compile": plan.model.unet.compiled is not None,
        "model": None if checkpoint is None else checkpoint.name,
        "weights": None if checkpoint is None else checkpoint.digests,
        "vae": None if checkpoint is None or checkpoint.other_vae is None else {"sha256": checkpoint.digests["vae"]},
        "lora": list(lora) or None,
        "embeddings": list(embeddings) or None,
        **stored,
        "travel_mode": request.travel_mode,
        "controlnet": list(controlnet) or None,
        "revision": REVISION,
        "versions": {
            "zs2": __version__,
            "pillow": PIL.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        **part,
    }


def _stored(prompt: str | Sequence[str] | Mapping[int, str]) -> Any:
    """A prompt as JSON has it, in which keys are texts."""
    if isinstance(prompt, Mapping):
        return {str(frame): text for frame, text in prompt.items()}
    return prompt if isinstance(prompt, str) else [*prompt]


def _digest(given: Tensor | Encoded | None) -> str | None:
    """The SHA-256 of a tensor, or of a context and its pooled text; None if there is none."""
    if given is None:
        return None
    parts = [given] if isinstance(given, torch.Tensor) else [given.context, given.pooled]
    numbers = [part.float().cpu().numpy().tobytes() for part in parts if part is not None]
    return hashlib.sha256(b"".join(numbers)).hexdigest()
