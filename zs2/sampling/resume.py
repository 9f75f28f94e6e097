"""The file from which a stream goes on: the momentum states of all steps after the last finished chunk.

    metadata     frames: how many are finished; settings: those of the clip, as JSON
    tensors      STEP.BLOCK: the state of a transformer block after a step

It is a safetensors file that is replaced whole. With the seed it is all that a stream remembers: the noise of later
frames is drawn again. So the frames that follow are those of the undisturbed stream, bit for bit on the same machine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zs2.errors import InputError
from zs2.sampling.kept_states import KeptStates
from zs2.sampling.request import UNSTATED
from zs2.system.atomic import SUFFIX
from zs2.version import revision_text

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class ResumeFile:
    """The file of one stream.

    Args:
        path: where it is, or will be.
        settings: the clip's, JSON; None in processes that neither write nor check it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.settings = settings

    def finished(self) -> int:
        """How many frames are finished; 0 if the file is not there.

        Raises: InputError if it can't be read, or is of other settings; the message names the difference.
        """
        if not self.path.exists():
            return 0
        metadata = self._read()[0]
        try:
            frames, settings = int(metadata["frames"]), json.loads(metadata["settings"])
            if frames < 1 or not isinstance(settings, dict):
                raise ValueError
        except (KeyError, ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: not the states of a stream: begin anew") from error
        if self.settings is not None and differing(settings, self.settings) == ["revision"]:
            before, now = (revision_text(one.get("revision")) for one in (settings, self.settings))
            raise InputError(
                f"{self.path}: the stream began with {before} of what zs2 computes, now it is {now}: begin anew"
            )
        if self.settings is not None and (other := differences(settings, self.settings)):
            raise InputError(f"{self.path}: the stream began with {other}: give the same options, or begin anew")
        return frames

    def restore(self, kept: KeptStates, steps: int, device: torch.device) -> int:
        """Give a stream of so many steps the states of the file, if it is there. Returns: as `finished`."""
        frames = self.finished()
        if frames:
            states: list[dict[int, Tensor]] = [{} for _ in range(steps)]
            blocks = 0
            for name, tensor in self._read()[1]:
                match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", name, re.ASCII)
                if match is None or int(match[1]) >= steps:
                    raise InputError(f"{self.path}: unexpected tensor {name!r}: begin anew")
                states[int(match[1])][int(match[2])] = tensor.to(device, copy=True)  # not mapped from the old file
                blocks = max(blocks, int(match[2]) + 1)
            for step, found in enumerate(states):
                kept.keep(step, [found.get(block) for block in range(blocks)] if found else ())
        return frames

    def keep(self, kept: KeptStates, steps: int, frames: int) -> None:
        """Replace the file: these frames are finished, and these are the states after them. Raises: OSError."""
        if self.settings is None:
            return
        tensors = {
            f"{step}.{block}": state
            for step in range(steps)
            for block, state in enumerate(kept.stored(step))
            if state is not None
        }
        metadata = {"frames": str(frames), "settings": json.dumps(self.settings)}
        part = self.path.with_name(self.path.name + SUFFIX)
        try:
            write_tensors(part, tensors, metadata)
            os.replace(part, self.path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _read(self) -> tuple[dict[str, str], Iterator[tuple[str, Tensor]]]:
        """The metadata, and the tensors by name, one after another."""
        try:
            file = safe_open(self.path, framework="pt")
            return file.metadata() or {}, ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path}: can't be read ({error}): begin anew") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, one tensor after another: the library copies all of them before it writes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # the data begins at a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def differing(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the settings in which a clip differs from one of today. What an older clip does not record is as
    clips were made then."""
    before, after = UNSTATED | {**recorded}, UNSTATED | {**now}
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, as words; empty if none does."""
    before, names = UNSTATED | {**recorded}, differing(recorded, now)
    shown = [f"{name} {_short(before.get(name))}, now {_short(now.get(name))}" for name in names[:3]]
    return "; ".join(shown) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
