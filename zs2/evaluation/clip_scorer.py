"""The CLIP that scores clips: embeddings of frames and of prompts in the space that they share.

Two layouts are read, safetensors only:

    transformers' CLIPModel   one model.safetensors with both towers, config.json, preprocessor_config.json and the
                              tokenizer's files; a folder, or on the hub, such as openai/clip-vit-large-patch14
    a model folder            image_encoder/, text_encoder/ (with text_projection), tokenizer/ and
                              feature_extractor/preprocessor_config.json, such as the default checkpoint

In both, preprocessor_config.json says how frames become pixels: size, mean, deviation. A folder without that file is an
error, because a wrong mean would go unnoticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zs2.checkpoints.diffusers_folder import rename
from zs2.checkpoints.digests import check_identity, identity, sha256
from zs2.checkpoints.hub import STANDARD_CLIP, TOKENIZER, choose_weights
from zs2.checkpoints.locate import full_name, local_path, locate
from zs2.checkpoints.own_settings import OwnSettings
from zs2.checkpoints.tensor_files import loading, read_tensors, weight_files
from zs2.errors import InputError
from zs2.evaluation.image_processor import ImageProcessor
from zs2.models.clip import TextEncoder, VisionEncoder
from zs2.models.clip_config import TextConfig, VisionConfig, tower
from zs2.models.tokenizer import Tokenizer
from zs2.system.devices import overflow
from zs2.system.json_files import Json, read_json
from zs2.system.modules import assign, drop_layers, not_finite, without_weights
from zs2.video.formats import Frames

BATCH = 32  # frames encoded at once; fixed, so that the last bits of scores do not depend on the machine's memory


def scoring_model(model: str | Path) -> str:
    """The CLIP that scores a model's clips by default: its own, or OpenAI's."""
    return own_clip(model) or STANDARD_CLIP


def own_clip(model: str | Path) -> str | None:
    """The model that has a model's own CLIP, in image_encoder/: itself, or its base. None if there is none."""
    if _has_clip(model):
        return str(model)
    base = OwnSettings.of(model).base
    places = [] if base is None else [os.path.normpath(Path(full_name(str(model)), "..", base)), full_name(base)]
    return next(filter(_has_clip, places), None)


def _has_clip(model: str | Path) -> bool:
    folder = local_path(model)
    return folder is not None and (folder / "image_encoder").is_dir()


class Scorer:
    """A CLIP.

    Attributes:
        name: as it was asked for.
        comparable: whether its scores compare with published ones. Those of a CLIP that came with one model do not.
        digests: SHA-256 of the weights, and of the configurations and the tokenizer together.
    """

    def __init__(self, parts: Parts, name: str, device: str | torch.device) -> None:
        self.name, self.comparable, self.device = name, parts.comparable, torch.device(device)
        text, vision = parts.text, parts.vision
        if text.projection_dim != vision.projection_dim:
            raise InputError(
                f"{name}: texts are projected to {text.projection_dim} numbers, pictures to {vision.projection_dim}: "
                "expected the same, because they are compared"
            )
        if "text_projection.weight" not in parts.text_tensors:
            raise InputError(f"{name}: its text encoder has no text_projection, so it can't score: give another CLIP")
        drop_layers(parts.text_tensors, text.num_hidden_layers, parts.names[0])
        drop_layers(parts.vision_tensors, vision.num_hidden_layers, parts.names[1])
        for part, layers in ((text, parts.text_tensors), (vision, parts.vision_tensors)):
            if part.num_hidden_layers > len(layers):  # before so many are built
                raise InputError(
                    f"{name}: {part.num_hidden_layers} layers, but {len(layers)} tensors: some are missing"
                )
        with without_weights():
            text_encoder, vision_encoder = TextEncoder(text), VisionEncoder(vision)
        text_part, vision_part = parts.names
        self.text = assign(text_encoder, parts.text_tensors, text_part, torch.float32, self.device)
        self.vision = assign(vision_encoder, parts.vision_tensors, vision_part, torch.float32, self.device)
        self.tokenizer = Tokenizer.from_folder(parts.tokenizer, text.max_position_embeddings)
        if self.tokenizer.vocab_size != text.vocab_size or text.eos_token_id not in (2, self.tokenizer.eos_id):
            raise InputError(
                f"{name}: its tokenizer has {self.tokenizer.vocab_size} tokens and ends a text with "
                f"{self.tokenizer.eos_id}, its text encoder has {text.vocab_size} and looks for {text.eos_token_id}: "
                "are they of one CLIP?"
            )
        self.images = ImageProcessor.from_json(parts.images)
        self._files = [(part, files, identity(files)) for part, files in parts.files.items()]
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(cls, model: str | Path, device: str | torch.device = "cpu") -> Scorer:
        """Load a CLIP in float32 from a folder in one of the two layouts, or from `owner/name[@revision]` on the hub.

        Raises: InputError for any other folder, and for weights that do not fit their configuration.
        """
        name = full_name(str(model))
        path, _ = locate(name, "float32", choose_clip_files)
        with loading(name):
            return cls(Parts.read(path, name), name, device)

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the weights, and of everything else that decides an embedding, under `config`."""
        rest: list[Any] = [asdict(self.text.config), asdict(self.vision.config), asdict(self.images)]
        rest += self.tokenizer.content
        config = hashlib.sha256(dumps(rest, sort_keys=True).encode()).hexdigest()
        found = {part: sha256(files) for part, files, _ in self._files}
        for _, files, before in self._files:
            check_identity(files, before)
        return found | {"config": config}

    @torch.no_grad()
    def embed_frames(self, frames: Frames) -> Tensor:
        """uint8 (F, H, W, 3) → unit vectors, float64 on the CPU (F, d). Equal frames are encoded once.

        Raises: InputError if preprocessing gives another size than the vision tower reads.
        """
        keys = [frame.tobytes() for frame in frames]
        distinct = dict(zip(keys, frames, strict=True))
        places = {key: i for i, key in enumerate(distinct)}
        pictures, size, rows = list(distinct.values()), self.vision.config.image_size, []
        for start in range(0, len(pictures), BATCH):
            pixels = self.images(np.stack(pictures[start : start + BATCH]))
            if pixels.shape[2:] != (size, size):
                raise InputError(
                    f"frames of {frames.shape[2]}x{frames.shape[1]} become {pixels.shape[3]}x{pixels.shape[2]} by "
                    f"{self.name}'s preprocessor_config.json, but it reads {size}x{size}: expected a crop_size"
                )
            rows.append(self._unit(self.vision.embed(pixels.to(self.device))))
        return torch.cat(rows)[[places[key] for key in keys]]

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit vectors, float64 on the CPU (b, d). Each is encoded once, alone. Warns of a text that is cut."""
        for text in texts:
            if text not in self._texts:
                self._texts[text] = self._unit(self.text.embed(self.tokenizer.encode([text]).to(self.device)))[0]
        return torch.stack([self._texts[text] for text in texts])

    def _unit(self, embeddings: Tensor) -> Tensor:
        """Normalise. Raises: FloatingPointError if a number is NaN or infinite, as with broken weights."""
        if not embeddings.isfinite().all():
            weights = not_finite({"text tower": self.text, "vision tower": self.vision})
            raise overflow(
                f"{self.name}, the CLIP that scores, gave NaN or infinity", torch.float32, weights, "another"
            )
        return torch.nn.functional.normalize(embeddings.cpu().double(), dim=-1)


@dataclass(frozen=True)
class Parts:
    """The parts of a CLIP, the same for both layouts."""

    comparable: bool
    text: TextConfig
    vision: VisionConfig
    text_tensors: dict[str, Tensor]
    vision_tensors: dict[str, Tensor]
    names: tuple[str, str]  # of the two towers, in errors
    tokenizer: Path
    images: Json
    files: dict[str, list[Path]]

    @classmethod
    def read(cls, path: Path, name: str) -> Parts:
        """Read a folder in either layout. Raises: InputError for any other folder, or a missing part."""
        if (path / "image_encoder").is_dir():
            return cls._from_model(path)
        if (path / "config.json").is_file():
            return cls._from_clip(path, name)
        raise InputError(
            f"{name!r} has no CLIP that can score: expected a folder with image_encoder/, or one with the "
            f"config.json and model.safetensors of transformers' CLIPModel; or give {STANDARD_CLIP}"
        )

    @classmethod
    def _from_model(cls, path: Path) -> Parts:
        encoders = ("text_encoder", "image_encoder")
        if not (path / "text_encoder").is_dir():
            raise InputError(f"{str(path)!r} has an image_encoder/ but no text_encoder/: expected both in a CLIP")
        files = {part: weight_files(path / part, "model", torch.float32) for part in encoders}
        text, vision = (rename(read_tensors(files[part])) for part in encoders)
        return cls(
            comparable=False,
            text=TextConfig.from_json(read_json(path / "text_encoder" / "config.json")),
            vision=VisionConfig.from_json(read_json(path / "image_encoder" / "config.json")),
            text_tensors=text,
            vision_tensors=vision,
            names=encoders,
            tokenizer=path / "tokenizer",
            images=read_json(path / "feature_extractor" / "preprocessor_config.json"),
            files=files,
        )

    @classmethod
    def _from_clip(cls, path: Path, name: str) -> Parts:
        config = read_json(path / "config.json")
        if config.get("model_type") not in (None, "clip"):
            raise InputError(f"{name} is of the type {config['model_type']!r}: expected a CLIPModel ('clip')")
        files = weight_files(path, "model", torch.float32)
        tensors = rename(read_tensors(files))
        tensors.pop("logit_scale", None)  # only the training's loss needs it
        text = {name: tensors.pop(name) for name in list(tensors) if name.startswith("text_")}
        return cls(
            comparable=True,
            text=TextConfig.from_json(tower(config, "text"), name),
            vision=VisionConfig.from_json(tower(config, "vision"), name),
            text_tensors=text,
            vision_tensors=tensors,
            names=(f"{name}, text tower", f"{name}, vision tower"),
            tokenizer=path,
            images=_images(path),
            files={"model": files},
        )


def choose_clip_files(names: Iterable[str], dtype: str) -> list[str]:
    """Choose the files of a repository that a CLIP in transformers' CLIPModel layout needs. The result is sorted.

    This is `choose_files` for a CLIP. One set of weights is for both towers.

    Raises: InputError if a needed file is missing, or is there only as a pickle.
    """
    have = set(names)
    images = [name for name in ("preprocessor_config.json", "processor_config.json") if name in have]
    needed = ["config.json", *(images or ["preprocessor_config.json"])]
    if "tokenizer.json" not in have:
        needed += ["vocab.json", "merges.txt"]
    missing = [name for name in needed if name not in have]
    if missing:
        raise InputError(f"not a CLIP in the layout of transformers' CLIPModel: it has no {', '.join(missing)}")
    return sorted({*needed, *(name for name in TOKENIZER if name in have), *choose_weights(have, "model", dtype)})


def _images(path: Path) -> Json:
    """The image processor's JSON: part of processor_config.json in new folders, a file of its own in others."""
    whole = path / "processor_config.json"
    within = read_json(whole).get("image_processor") if whole.exists() else None
    return within if isinstance(within, dict) else read_json(path / "preprocessor_config.json")
