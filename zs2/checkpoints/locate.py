"""Where a model is: the working directory, the clone of zs2, the installed package, or the hub. No torch here.

The default checkpoint is in `weights/` of the clone, and a wheel carries it in `weights/` of the package. So a path
that begins with `weights/` is also looked for there, whatever the working directory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from zs2.checkpoints.hub import DEFAULT_MODEL, SHORT_NAMES, Choose, choose_files, fetch, is_hub_id, parse
from zs2.errors import InputError, brief
from zs2.system.regular_files import POINTER, first_bytes

PACKAGE = Path(__file__).resolve().parents[1]
# Of a LoRA in a folder: PEFT's files, and that of diffusers.
ADAPTER, CONFIG, DIFFUSERS = "adapter_model.safetensors", "adapter_config.json", "pytorch_lora_weights.safetensors"
# What comes with zs2: the default checkpoint, and the models that go with it, with what they are.
BUNDLED = {
    DEFAULT_MODEL: "",
    f"{DEFAULT_MODEL}-edges": ": its ControlNet of edges",
    f"{DEFAULT_MODEL}-edit": ": edits by instructions",
}
MOST_HEADER = 64 * 2**20  # bytes of a safetensors file; SDXL's has 0.3 MB, and trainers add some MB of metadata
# Default checkpoints of before, each with the last commit that has it.
FORMER = {"weights/emoji64": "5bdcf2b42a"}
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


def full_name(model: str) -> str:
    """The name that a model is recorded by: the short name of one of zs2's own becomes its path."""
    own = {Path(path).name: path for path in (*BUNDLED, *FORMER)}
    return own[model] if model in own and not Path(model).exists() else model


def local_path(model: str | Path) -> Path | None:
    """The folder or file of a model that is on this machine, the hub's cache apart. None if there is none."""
    if not str(model):  # as a Path it would be the current folder
        return None
    path = Path(full_name(str(model)))
    bundled = (PACKAGE.parent / path, PACKAGE / path) if path.parts[:1] == ("weights",) else ()
    try:
        return next((place for place in (path, *bundled) if place.exists()), None)
    except OSError:  # a name too long to exist
        return None


def locate(model: str | Path, dtype: str, choose: Choose = choose_files) -> tuple[Path, str | None]:
    """The folder or file of a model, fetched from the hub if need be, and its name if that is not the path's own.

    Args:
        model: a path, a short name (`python -m zs2.models`), or `owner/name[@revision]` on the hub.
        dtype: that the weights will be loaded in: float32, bfloat16 or float16.
        choose: which of a repository's files are fetched.
    Raises: InputError if there is no such model, or if it is a pickle.
    """
    path = local_path(model)
    if path is None:
        refuse_missing(model)
    if path is None and is_hub_id(str(model)):
        try:
            return fetch(str(model), dtype, choose), parse(str(model))[0]
        except InputError as error:
            if "/" not in str(model) or " here" in str(error):
                raise
            raise InputError(f"no file or folder {str(model)!r} here, and on the hub: {error}") from error
    if path is None:
        raise InputError(
            f"no such model: {brief(str(model))}: expected a folder in the diffusers layout, such as {DEFAULT_MODEL}, "
            "a .safetensors file, a short name (zs2 models lists them), or owner/name on the hub"
        )
    if path.is_file() and path.suffix.lower() in PICKLES:
        raise InputError(refuse_pickle(path))
    return path, None


def locate_base(folder: Path, base: str, dtype: str, choose: Choose = choose_files) -> Path:
    """The folder of the model that has the parts which a folder lacks, as its zs2.json says.

    base: the name of a folder beside it, or a short name.

    Raises: InputError if there is none.
    """
    beside = folder.resolve().parent / base
    if beside.is_dir():
        return beside
    if base not in (*SHORT_NAMES, *(Path(own).name for own in (DEFAULT_MODEL, *FORMER))):
        raise InputError(f"{str(folder)!r} needs the model {base!r}, and there is no folder {str(beside)!r}")
    return locate(base, dtype, choose)[0]


def refuse_missing(model: str | Path) -> None:
    """Raise InputError for one of zs2's own models that is not here: on the hub its name would be another's."""
    name = str(Path(full_name(str(model))))
    if name in BUNDLED:
        raise InputError(
            f"{name} is not here: it comes with the repository and its wheel; clone it, or give another model"
        )
    if name in FORMER:
        raise InputError(f"{name} is not here: {former(name)}; or give another model")


def former(model: str) -> str:
    """How to get a default checkpoint of before, by its path or short name; empty for any other model."""
    name = full_name(model)
    if name not in FORMER:
        return ""
    commit = FORMER[name]
    return f"commit {commit} is the last that has it; in a clone, `git restore --source {commit} {name}` brings it back"


def refuse_pickle(path: Path, advice: str = "convert the model to safetensors") -> str:
    """Why a file with a pickle's name is not read: it is one, or its content is something else.

    advice: what to do with a pickle.
    """
    head = first_bytes(path)
    if _is_length(head) and head[8:9] == b"{":
        right = path.with_suffix(".safetensors").name
        return f"{path.name} is a safetensors file with a pickle's name: rename it to {right}"
    pickle = _pickle(path, advice)
    found = content(path, advice) or pickle
    return pickle if found == pickle else f"{path.name}: {found}"


def content(path: Path, advice: str = "convert the model to safetensors") -> str:
    """For an error: what a file is that is no safetensors file, by its first bytes, and what to do. Empty if they may
    be those of one, or are not known. advice: what to do with a pickle."""
    head = first_bytes(path)
    # The first 8 bytes of a safetensors file are the header's length, and 640 begins with 0x80 and 2, too.
    protocol = head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if (protocol and not _is_length(head)) or (head.startswith(b"PK\3\4") and b".pkl" in head):
        return _pickle(path, advice)
    if head.startswith(b"PK\3\4"):
        return "a ZIP archive: unpack it, and give the safetensors file in it"
    if head.startswith(b"GGUF"):
        return "GGUF, expected safetensors"
    if head.startswith(POINTER):
        return "a Git LFS pointer, not the weights: run `git lfs pull`"
    if len(head) > 8 and re.fullmatch(rb"[\t\n\r\x20-\x7e]*", head[:64]):
        begin = head[:40].decode()
        return (
            f"not a whole safetensors file, but a text, such as a server's error: fetch it again; it begins {begin!r}"
        )
    return ""


def _is_length(head: bytes) -> bool:
    """Whether a file may begin with the length of a safetensors header: 8 bytes, little endian, as far as it goes."""
    return int.from_bytes(head[:8], "little") <= MOST_HEADER


def _pickle(path: Path, advice: str) -> str:
    return f"{path.name} is a pickle, which can run any code when it is loaded: {advice}"


def model_folder(path: Path) -> Path | None:
    """The model's folder that a file is of; None if there is none around it."""
    places = path.absolute().parents[:2]
    return next((p for p in places if (p / "model_index.json").is_file() or (p / "unet").is_dir()), None)


def lora_sources(path: Path) -> list[tuple[Path, Path | None, str]]:
    """The safetensors of a LoRA, each with PEFT's configuration of it, if any, and the text tower that it is for."""
    if os.path.isfile(path):  # also of a name that is too long to be one
        config = path.parent / CONFIG
        return [(path, config if path.name == ADAPTER and config.is_file() else None, "text_encoder")]
    if not os.path.isdir(path):
        raise InputError(f"no such LoRA: {str(path)!r}: expected a safetensors file, or a folder of PEFT or diffusers")
    if (path / DIFFUSERS).is_file():
        return [(path / DIFFUSERS, None, "text_encoder")]
    folders = [path, *(path / part for part in ("unet", "text_encoder", "text_encoder_2"))]
    found = [folder for folder in folders if (folder / CONFIG).is_file()]
    for folder in found:
        pickle = (folder / ADAPTER).with_suffix(".bin")
        if pickle.is_file() and not (folder / ADAPTER).is_file():
            raise InputError(refuse_pickle(pickle))
    if not found or not all((folder / ADAPTER).is_file() for folder in found):
        raise InputError(f"no LoRA in {str(path)!r}: expected {ADAPTER} and {CONFIG}, or {DIFFUSERS}")
    return [
        (folder / ADAPTER, folder / CONFIG, "text_encoder_2" if folder.name == "text_encoder_2" else "text_encoder")
        for folder in found
    ]
