"""ControlNets while sampling: the hints of a chunk, encoded once, and the residuals of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zs2.guidance.controls import Control
from zs2.guidance.ranges import Ranges
from zs2.models.attention import TextKV
from zs2.models.controlnet import ControlNet, added_up
from zs2.models.unet import Residuals, States


@dataclass(frozen=True)
class ReadText:
    """What a network reads of the texts: keys and values of its cross-attentions, and SDXL's embedding."""

    text: Sequence[TextKV]
    added: Tensor | None


class Hints(Ranges):
    """The encoded hints of a control, by frames: (count, c, h, w) on the network's device.

    Args: size: height and width in pixels. keep_all: as in `Ranges`.
    """

    def __init__(self, network: ControlNet, control: Control, size: tuple[int, int], *, keep_all: bool) -> None:
        super().__init__(keep_all=keep_all)
        self.network, self.control, self.size = network, control, size

    def compute(self, first: int, count: int) -> Tensor:
        """As in `Ranges`."""
        device, still = self.network.conv_in.weight.device, self.control.clip.count is None
        encoded = []
        for i in range(first, first + (1 if still else count)):  # one at a time: they are large
            frame = torch.from_numpy(self.control.frames(i, 1, self.size)).permute(0, 3, 1, 2)  # (1, 3, H, W)
            encoded.append(self.network.encode_hints(frame.to(device).float().div(255)))
        return torch.cat(encoded * (count if still else 1))


class Steering:
    """The ControlNets of a sampling, each with its control.

    Args:
        size: height and width in pixels. steps: of the sampling. keep_all: whether the hints of all frames are kept.
    """

    def __init__(
        self,
        networks: Sequence[ControlNet],
        controls: Sequence[Control],
        size: tuple[int, int],
        steps: int,
        keep_all: bool,
    ) -> None:
        self.steps = steps
        pairs = zip(networks, controls, strict=True)
        self.hints = [Hints(network, control, size, keep_all=keep_all) for network, control in pairs]

    def residuals(
        self,
        i: int,
        x: Tensor,
        t: Tensor,
        read: Sequence[ReadText],
        *,
        first: int,
        frames: int,
        states: States,
        **call: Any,
    ) -> tuple[Residuals | None, list[Tensor | None]]:
        """The residuals of step i, None if no control is on, and the states of the next chunk.

        Args:
            x: (branches·f, c, h, w). t: the timestep. read: for each network.
            first: the index of the first frame. frames: f.
            states: those of the previous chunk, of all networks that are on in this step; or none.
            call: as in `ControlNet.forward`.
        """
        found: list[Residuals] = []
        after: list[Tensor | None] = []
        for hints, text in zip(self.hints, read, strict=True):
            if not hints.control.is_on(i, self.steps):
                continue
            blocks, hint = len(text.text), hints.frames(first, frames)
            own, states = states[:blocks], states[blocks:]
            conditions = {"scale": hints.control.scale, "added": text.added, "states": own}
            residuals, next_states = hints.network(
                x, t, text.text, hint, frames=frames, first=first, **conditions, **call
            )
            found.append(residuals)
            after += next_states
        return added_up(found), after
