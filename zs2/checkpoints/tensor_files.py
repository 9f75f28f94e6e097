"""Read safetensors, and nothing else: find the files with a part's weights, and explain why a file can't be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zs2.checkpoints.hub import find_weights
from zs2.checkpoints.locate import MOST_HEADER, PICKLES, content, model_folder, refuse_pickle
from zs2.errors import InputError, OutOfMemory, brief, is_out_of_memory
from zs2.system.json_files import NAME, read_json
from zs2.system.regular_files import check_regular


def weight_files(folder: Path, stem: str, dtype: torch.dtype, variant: str | None = None) -> list[Path]:
    """The safetensors files of one part: a file, or the shards that an index lists; see `find_weights`.

    Raises: InputError if there are none, if there are only pickles, or if a shard is missing or outside the folder.
    """
    names = sorted(path.name for path in folder.iterdir() if path.exists())
    try:
        found = find_weights(names, stem, str(dtype).removeprefix("torch."), variant)
    except InputError as error:
        raise InputError(f"{folder.name}/: {error}") from error
    if found is not None:
        return _shards(folder / found[0]) if found[0].endswith(".json") else [folder / found[0]]
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if pickles:
        raise InputError(refuse_pickle(folder / pickles[0]))
    there = ", ".join(names[:5]) + ", …" * (len(names) > 5) or "nothing"
    raise InputError(f"{folder.name}/ has no {stem}.safetensors, nor a variant of it; it has {there}")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index.name}: expected a weight_map from tensors to files")
    for name in names.values():
        if not NAME.fullmatch(name) or not name.endswith(".safetensors"):
            raise InputError(f"{index.name} names {brief(name)}: expected safetensors files beside it")
    shards = [index.parent / name for name in sorted(set(names.values()))]
    for shard in shards:
        if not shard.exists():
            raise InputError(f"{index.name} names {shard.name}, which is not there: is the download complete?")
    return shards


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of some safetensors files, memory-mapped, those of each file by name.

    Raises: InputError for a file that is incomplete, is something else, or repeats a tensor of another file.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        check_tensor_file(path)
        try:
            with safe_open(path, framework="pt") as file:
                for name in sorted(file.keys()):
                    if name in tensors:
                        raise InputError(f"{path.name} repeats {name} of another file")
                    tensors[name] = file.get_tensor(name)
        except InputError:
            raise
        except (SafetensorError, OSError) as error:
            raise InputError(f"{_shown_name(path)}: {_what_it_is(path)} ({error})") from error
        except Exception as error:  # a dtype that torch does not have, or a shape that it can't have
            raise InputError(f"{_shown_name(path)}: {reason(error)}: expected tensors that torch can hold") from error
    return tensors


def check_tensor_file(path: Path) -> None:
    """Check that a path is a regular file whose header is no longer than a model's, before it is parsed.

    Raises: InputError.
    """
    try:
        size = check_regular(path).st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise InputError(f"{_shown_name(path)} can't be read ({error.strerror or error})") from error
    if MOST_HEADER < length <= size - 8:
        header = f"its header has {length} bytes: expected at most {MOST_HEADER}"
        raise InputError(f"{_shown_name(path)}: not a whole safetensors file: {header}")


def _shown_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}".removeprefix("/")


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Whatever a damaged file provokes in the code that loads it becomes an InputError of one line.

    what: the part or the file, for the message.
    """
    try:
        yield
    except (InputError, OutOfMemory):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            advice = "half precision (--dtype bfloat16), a smaller model, or a higher limit of memory"
            raise OutOfMemory(f"out of memory in loading the weights of {what}: try {advice}") from error
        raise InputError(f"{what} can't be loaded ({reason(error)}): is the file whole?") from error


def reason(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def stored_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that most numbers of some tensors have."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.numel()
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file that `read_tensors` could read, by key. (The library's order is another one
    each time, and would decide which statement of several an error names.)"""
    with safe_open(path, framework="pt") as file:
        return dict(sorted((file.metadata() or {}).items()))


def _what_it_is(path: Path) -> str:
    if path.is_dir():
        return "a folder, expected a file"
    if path.suffix == ".json":
        folder = model_folder(path)
        return "JSON, no weights" + (f": give the model's folder, {str(folder)!r}" if folder else "")
    return content(path) or "not a whole safetensors file: fetch it again"
