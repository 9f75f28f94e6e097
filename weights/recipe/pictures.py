"""The pictures that scenes show, fetched once, and their names.

Pictures: Microsoft's Fluent Emoji 3D (MIT) from npm's @lobehub/fluent-emoji-3d, 256×256 with transparency.
Names: npm's emoji-datasource-google (MIT), in lower case. A folder of your own pictures works too: NAME.png each.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zs2.errors import InputError
from zs2.system.own_files import check_own
from zs2.system.progress import progress

REGISTRY = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org")
PICTURES = (
    "@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
    "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb445d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
)
NAMES = (
    "emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz",
    "6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47fe31104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc",
)
THINGS = Path(__file__).parent / "things.json"  # the things that the checkpoint knows, in the order of learning


def things(count: int | None = None) -> list[str]:
    """The names of the first `count` things that the checkpoint learns. None: all."""
    return json.loads(THINGS.read_text(encoding="utf-8"))[:count]


def load(names: Sequence[str], cache: Path, own: Path | None, size: int) -> Tensor:
    """The pictures of these names: float32 (N, 4, 2·size, 2·size) in [0, 1], red, green, blue times alpha, then alpha.

    Args:
        cache: the folder for fetched packages.
        own: other pictures instead: a folder with NAME.png each, or a file of `pack`.
        size: of the scenes that are to be drawn. Pictures are twice as large, so that they are sharp when turned.
    Raises: InputError for a name that has no picture, or a package that can't be fetched or has another checksum.
    """
    if not names:
        raise InputError(f"no pictures in {own}: expected NAME.png each")
    found = fetched(names, cache) if own is None else packed(own) if own.is_file() else in_folder(names, own)
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{own or PICTURES[0]} has no picture of {', '.join(missing)}: expected {missing[0]}.png")
    return torch.stack([_picture(found[name], 2 * size) for name in names])


def in_folder(names: Sequence[str], folder: Path) -> dict[str, bytes]:
    """The files of pictures in a folder, those that are there."""
    files = {name: folder / f"{name}.png" for name in names}
    return {name: file.read_bytes() for name, file in files.items() if file.is_file()}


def pack(names: Sequence[str], cache: Path, file: Path) -> None:
    """Write the fetched pictures into one file, for a machine that can fetch nothing: 0.6 MB for all things.

    Raises: InputError if another file is there.
    """
    check_own([(file, (f"{min(names)}.webp",))])  # the name of the first one, of which the file begins
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as out:
        for name, data in sorted(fetched(names, cache).items()):
            out.writestr(f"{name}.webp", data)


def packed(file: Path) -> dict[str, bytes]:
    """The files of pictures in a file of `pack`. Raises: InputError if it is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {Path(member).stem: archive.read(member) for member in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise InputError(f"{file} is no file of pictures: expected one of `python -m weights.recipe pack`") from error


def fetched(names: Sequence[str], cache: Path) -> dict[str, bytes]:
    """The files of the emoji's pictures, those that are there. Raises: InputError for a name that no emoji has."""
    with tarfile.open(fetch(*NAMES, cache)) as archive:
        entries = {entry["name"].lower(): entry for entry in json.loads(_member(archive, "package/emoji.json"))}
    unknown = [name for name in names if name not in entries]
    if unknown:
        raise InputError(f"no emoji is called {', '.join(unknown)}: expected names of {NAMES[0].split('/')[0]}")
    codes = {name: {entries[name]["unified"], entries[name]["non_qualified"]} - {None} for name in names}
    files = {f"package/assets/{code.lower()}.webp": name for name, these in codes.items() for code in these}
    with tarfile.open(fetch(*PICTURES, cache)) as archive:
        return {files[member.name]: _member(archive, member) for member in archive if member.name in files}


def fetch(path: str, checksum: str, cache: Path) -> Path:
    """A package of the npm registry, fetched once and checked (SHA-512)."""
    file = cache / path.rpartition("/")[2]
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        try:
            with urllib.request.urlopen(f"{REGISTRY}/{path}", timeout=60) as answer, open(part, "wb") as out:
                size = int(answer.headers.get("Content-Length", 0)) or 1
                blocks = iter(lambda: answer.read(1 << 20), b"")
                for block in progress(blocks, -(-size >> 20), f"fetching {file.name} (MB)"):
                    out.write(block)
        except OSError as error:
            raise InputError(
                f"can't fetch {path} ({error}): is there a network? NPM_CONFIG_REGISTRY names a mirror"
            ) from error
        part.replace(file)
    if hashlib.sha512(file.read_bytes()).hexdigest() != checksum:
        raise InputError(f"{file} is not the package that the recipe was made with: remove it, and try again")
    return file


def _member(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(member)
    assert opened is not None  # these are files
    return opened.read()


def _picture(data: bytes, side: int) -> Tensor:
    """The bytes of a picture → (4, side, side). Colours are multiplied by alpha before the picture is scaled."""
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), dtype=np.float32) / 255
    premultiplied = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=2)
    planes = [
        Image.fromarray(plane).resize((side, side), Image.Resampling.LANCZOS)
        for plane in np.moveaxis(premultiplied, 2, 0)
    ]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1)
