"""From frames to the input of CLIP's vision tower: resized, cropped, normalised as by transformers' CLIPImageProcessor.

That is the processor with Pillow (CLIPImageProcessorPil in transformers 5), below version 13 of Pillow: see
video/resizing.py. The processor with torchvision rounds differently when it resizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zs2.errors import InputError, whole
from zs2.system.json_files import Json, Reader
from zs2.video.formats import Frames
from zs2.video.resizing import resized

# The defaults of CLIPImageProcessor: those of OpenAI's CLIP (Radford et al. 2021).
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DEFAULTS: dict[str, Any] = {"size": 224, "crop_size": 224, "image_mean": MEAN, "image_std": STD}


@dataclass(frozen=True)
class ImageProcessor:
    """How frames become pixels. Resizing rounds to uint8, as Pillow does; the rest is float32.

    Args:
        size: (height, width) of the resized picture, or the length of its shortest side; None: not resized.
        resample: Pillow's filter; 3 is bicubic.
        crop: (height, width) of the centre crop; None: not cropped.
        scale: the factor for pixels of 0 … 255.
        mean, std: of red, green and blue, for normalisation.
    """

    size: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_json(cls, json: Json) -> ImageProcessor:
        """Read a `preprocessor_config.json`. Missing keys take the defaults of CLIPImageProcessor.

        Raises: InputError for another kind of processor, or for sizes that CLIP's processor does not have.
        """
        read = Reader("preprocessor_config.json", json, {"do_pad": (False, None)})
        kind = json.get("image_processor_type") or json.get("feature_extractor_type") or "CLIP"
        if "CLIP" not in str(kind):
            raise InputError(f"{read.what}: {kind!r} is not supported, only CLIPImageProcessor")
        size, crop = (_size(read, key, read.flag(do, True)) for key, do in _SIZES)
        if isinstance(crop, int):
            crop = crop, crop
        normalised = read.flag("do_normalize", True)
        mean = _numbers(read, "image_mean") if normalised else (0.0, 0.0, 0.0)
        std = _numbers(read, "image_std") if normalised else (1.0, 1.0, 1.0)
        if 0 in std:
            raise InputError(f"{read.what}: image_std is {list(std)}: expected numbers other than 0")
        scale = read.number("rescale_factor", 1 / 255) if read.flag("do_rescale", True) else 1.0
        filter_ = json.get("resample", Image.Resampling.BICUBIC)
        if size is None and filter_ is None:
            filter_ = Image.Resampling.BICUBIC  # not used
        return cls(size, whole(f"{read.what}: resample", filter_, 0, 5), crop, scale, mean, std)

    def __call__(self, frames: Frames) -> Tensor:
        """uint8 (F, H, W, 3) → float32 (F, 3, h, w). Raises: InputError if the frames are smaller than the crop."""
        if self.size is not None:
            size = _new_size(self.size, *frames.shape[1:3])
            frames = np.stack([resized(frame, size, self.resample) for frame in frames])
        if self.crop is not None:
            top, left = ((have - keep) // 2 for have, keep in zip(frames.shape[1:3], self.crop, strict=True))
            if top < 0 or left < 0:
                raise InputError(f"frames of {frames.shape[1:3]} pixels can't be cropped to {self.crop}: too small")
            frames = frames[:, top : top + self.crop[0], left : left + self.crop[1]]
        pixels = torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2).contiguous() * self.scale
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


def _new_size(size: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a resized picture. Where the shape is kept, the longer side is rounded down."""
    if isinstance(size, tuple):
        return size
    longer = int(size * max(height, width) / min(height, width))
    return (longer, size) if width <= height else (size, longer)


_SIZES = (("size", "do_resize"), ("crop_size", "do_center_crop"))


def _size(read: Reader, key: str, used: bool) -> tuple[int, int] | int | None:
    """{"height": h, "width": w}, or {"shortest_edge": n}, which old files write as n. None if it is not used."""
    value = read.json.get(key, DEFAULTS[key])
    what = f"{read.what}: {key}"
    if isinstance(value, dict):
        sides = dict(value)
        if sides.keys() == {"shortest_edge", "longest_edge"} and sides["longest_edge"] is None:
            del sides["longest_edge"]
        if sides.keys() not in ({"height", "width"}, {"shortest_edge"}):
            raise InputError(f"{what} is {value!r}: expected height and width, or shortest_edge")
        if not used:
            return None
        numbers = [whole(f"{what}: {side}", sides[side], 1) for side in sorted(sides)]
        return (numbers[0], numbers[1]) if len(numbers) == 2 else numbers[0]
    return whole(what, value, 1) if used else None


def _numbers(read: Reader, key: str) -> tuple[float, ...]:
    numbers = read.numbers(key) if key in read.json else DEFAULTS[key]
    if numbers is None:
        raise InputError(f"{read.what}: {key} is null: expected three numbers, of red, green and blue")
    if len(numbers) != 3:
        raise InputError(f"{read.what}: {key} has {len(numbers)} numbers: expected three, of red, green and blue")
    return tuple(numbers)
