"""Find, check and load a checkpoint: a folder in the diffusers layout, safetensors only.

Weights are memory-mapped and assigned to modules that were built on the meta device: nothing is initialised at random,
and a tensor already of the wanted dtype and device is never copied. Loading is strict: a tensor that is missing,
unexpected or of another shape is an error that names it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zs2.config import DEFAULT_MODEL, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from zs2.errors import InputError
from zs2.files import read_json
from zs2.models.clip import TextEncoder
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.tokenizer import Tokenizer

M = TypeVar("M", bound=nn.Module)

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

# Names that older files use for the same tensors, as (pattern, today's name); None: not a weight, dropped.
ALIASES: tuple[tuple[str, str | None], ...] = (
    (r"(.*\.)?position_ids", None),
    (r"(embeddings|encoder\.layers|final_layer_norm)\.(.*)", r"text_model.\1.\2"),
    (r"(.*\.attentions\.\d+)\.query\.(.*)", r"\1.to_q.\2"),
    (r"(.*\.attentions\.\d+)\.key\.(.*)", r"\1.to_k.\2"),
    (r"(.*\.attentions\.\d+)\.value\.(.*)", r"\1.to_v.\2"),
    (r"(.*\.attentions\.\d+)\.proj_attn\.(.*)", r"\1.to_out.0.\2"),
)


def find(model: str | Path) -> Path:
    """The folder of a checkpoint, looked for in the working directory and then beside the package.

    Raises: InputError if there is none, if it is not a model folder, or if it is a pickle.
    """
    beside = Path(__file__).resolve().parent.parent / model
    path = next((p for p in (Path(model), beside) if p.exists()), None)
    if path is None:
        raise InputError(
            f"no such model: {str(model)!r}: expected a folder in the diffusers layout, such as {DEFAULT_MODEL}"
        )
    if path.suffix.lower() in PICKLES and path.is_file():
        raise InputError(_pickle(path))
    if path.is_file():
        raise InputError(f"{path.name} is a single file: expected a folder in the diffusers layout (unet/, vae/, …)")
    missing = [part for part in (*PARTS, "tokenizer", "scheduler") if not (path / part).is_dir()]
    if missing:
        raise InputError(f"{str(model)!r} is not a model folder: it has no {'/, '.join(missing)}/")
    return path


def _pickle(path: Path) -> str:
    return f"{path.name} is a pickle, which can run any code when it is loaded: convert the model to safetensors"


class Checkpoint:
    """One checkpoint folder: its configurations, and its parts, each loaded when asked for.

    Args:
        model: a folder. dtype: of the loaded weights; picks between a file and its `.fp16.` variant where both exist.
    Raises: InputError as `find` says; each part raises it for files that do not fit.
    """

    def __init__(
        self, model: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        self.folder = find(model)
        self.name = self.folder.resolve().name
        self.dtype, self.device = dtype, torch.device(device)
        self.files = {part: weight_files(self.folder / part, stem, dtype) for part, stem in PARTS.items()}

    def unet(self, attn: str, mu: float) -> UNet:
        """The UNet, in the checkpoint's dtype."""
        config = UNetConfig.from_json(read_json(self.folder / "unet" / "config.json"))
        return self._load("unet", lambda tensors: UNet(config, attn, mu), self.dtype)

    def vae(self) -> VAE:
        """The VAE, always in float32: it is a small part of the work, and overflows float16 in some checkpoints."""
        config = VAEConfig.from_json(read_json(self.folder / "vae" / "config.json"))
        return self._load("vae", lambda tensors: VAE(config), torch.float32)

    def text_encoder(self) -> TextEncoder:
        """The text tower, with its projection where the file has one."""
        config = TextConfig.from_json(read_json(self.folder / "text_encoder" / "config.json"))
        return self._load(
            "text_encoder", lambda tensors: TextEncoder(config, "text_projection.weight" in tensors), self.dtype
        )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer; prompts are at most as long as the text tower has positions."""
        config = TextConfig.from_json(read_json(self.folder / "text_encoder" / "config.json"))
        return Tokenizer.from_folder(self.folder / "tokenizer", config.max_position_embeddings)

    def schedule(self) -> ScheduleConfig:
        """The noise schedule. As diffusers' Stable Diffusion pipeline does, whatever an old file says, the
        latents are not clipped, and the steps are offset by 1."""
        config = ScheduleConfig.from_json(read_json(self.folder / "scheduler" / "scheduler_config.json"))
        return replace(config, clip_sample=False, steps_offset=1)

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the weights of each part (of a sharded part: of its files, one after another)."""
        return {part: _sha256(files) for part, files in self.files.items()}

    def _load(self, part: str, build: Callable[[dict[str, Tensor]], M], dtype: torch.dtype) -> M:
        tensors = rename(read_tensors(self.files[part]))
        with without_weights():
            module = build(tensors)
        return assign(module, tensors, part, dtype, self.device)


INITIALISERS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)


class _NoInit(TorchFunctionMode):
    """Initialisers do nothing. (On meta tensors they would do nothing slowly: torch loads its compiler for them.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built here are on the meta device: they have names and shapes, but no memory, until `assign`."""
    with torch.device("meta"), _NoInit():
        yield


def weight_files(folder: Path, stem: str, dtype: torch.dtype) -> list[Path]:
    """The safetensors files of one part: a file, or the shards that an index lists; plain, or the `.fp16.` variant.

    Raises: InputError if there are none, if there are only pickles, or if a shard is missing or outside the folder.
    """
    variants = ["", ".fp16"] if dtype == torch.float32 else [".fp16", ""]
    for variant in variants:
        file = folder / f"{stem}{variant}.safetensors"
        if file.exists():
            return [file]
        for name in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
            if (folder / name).exists():
                return _shards(folder / name)
    pickles = [path for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
    if pickles:
        raise InputError(_pickle(pickles[0]))
    raise InputError(f"{folder.name}/ has no {stem}.safetensors")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index.name}: expected a weight_map from tensors to files")
    shards = [index.parent / name for name in sorted(set(names.values()))]
    for shard in shards:
        if shard.parent != index.parent or shard.suffix != ".safetensors":
            raise InputError(f"{index.name} names {shard.name!r}: expected safetensors files beside it")
        if not shard.exists():
            raise InputError(f"{index.name} names {shard.name}, which is not there: is the download complete?")
    return shards


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of some safetensors files, memory-mapped.

    Raises: InputError for a file that is not whole, is something else, or repeats a tensor of another.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if name in tensors:
                        raise InputError(f"{path.name} repeats {name} of another file")
                    tensors[name] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path.parent.name}/{path.name}: {_what_it_is(path)} ({error})") from error
    return tensors


def _what_it_is(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(32)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _pickle(path)
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights: run `git lfs pull`"
    return "not a whole safetensors file: fetch it again"


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors today's names, and drop what is not a weight, by the table ALIASES."""
    renamed = {}
    for name, tensor in tensors.items():
        today: str | None = name
        for pattern, target in ALIASES:
            match = re.fullmatch(pattern, name)
            if match:
                today = None if target is None else match.expand(target)
                break
        if today is not None:
            renamed[today] = tensor
    return renamed


def assign(module: M, tensors: dict[str, Tensor], what: str, dtype: torch.dtype, device: torch.device) -> M:
    """Give a module on the meta device its weights, for inference.

    Raises: InputError that names what is missing, unexpected, misshapen or not floating point.
    """
    want = module.state_dict()
    problems = [
        ("missing", [f"{name} {tuple(want[name].shape)}" for name in want if name not in tensors]),
        ("not expected", [name for name in tensors if name not in want]),
        (
            "of another shape",
            [
                f"{name} {tuple(tensor.shape)} instead of {tuple(want[name].shape)}"
                for name, tensor in tensors.items()
                if name in want and tensor.shape != want[name].shape
            ],
        ),
        ("not floating point", [f"{name} {t.dtype}" for name, t in tensors.items() if not t.is_floating_point()]),
    ]
    found = [f"{_count(names)} {problem}: {_some(names)}" for problem, names in problems if names]
    if found:
        raise InputError(f"{what}: the weights do not fit the configuration: {'; '.join(found)}")
    module.load_state_dict({name: tensor.to(device, dtype) for name, tensor in tensors.items()}, assign=True)
    return module.eval().requires_grad_(False)


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) > 1)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
