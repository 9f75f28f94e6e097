"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): read the files of embeddings, and add their tokens to a model.

An embedding is one or several rows for the table of token embeddings, with a token that stands for them in prompts.

    A1111, kohya    `emb_params` (n, c); the token is the file's name
    SDXL            `clip_l` (n, c) and `clip_g` (n, c), a tensor for each text tower; the token is the file's name
    diffusers       one tensor (c) or (n, c), which is named by its token
    in a LoRA       `bundle_emb.TOKEN.` and the name of a tensor as A1111 or SDXL has it
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zs2.checkpoints.digests import check_identity, identity, sha256
from zs2.checkpoints.locate import PICKLES, refuse_pickle
from zs2.checkpoints.lora import LoRA, files_of, lora_files, merge
from zs2.checkpoints.single_file import contents
from zs2.checkpoints.tensor_files import loading, read_tensors
from zs2.errors import InputError
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.unet import UNet

EmbeddingFile = str | Path | tuple[str | Path, str]  # FILE or FILE:TOKEN; a path; a file and its token

UNNAMED = ("emb_params", "string_to_param.*")  # names of a tensor that do not contain its token
TOWERS = {"clip_l": 0, "clip_g": 1}  # the number of the text tower
# The family by the widths of the vectors; only for messages.
FAMILIES = {(768,): "SD 1", (1024,): "SD 2", (1280,): "SDXL's second tower", (768, 1280): "SDXL"}
BUNDLED = re.compile(r"bundle_emb\.(.+)\.(emb_params|string_to_param\.\*|clip_[lg])", re.DOTALL)
SUFFIXES = "|".join(re.escape(suffix) for suffix in (".safetensors", *PICKLES))


@dataclass(frozen=True)
class Embedding:
    """The vectors of a token.

    Args:
        token: as it is written in prompts.
        vectors: (n, c) for each text tower by its number, or by None if only the width can tell the tower.
        source: the file, for errors.
    """

    token: str
    vectors: Mapping[int | None, Tensor]
    source: str


def parse(text: str) -> tuple[Path, str | None]:
    """Read `FILE[:TOKEN]`. A file with exactly this name, colons included, takes precedence.

    Raises: InputError for an empty file or token.
    """
    match = re.fullmatch(rf"(.+?(?:{SUFFIXES})):(.*)|([^:]+):([^/\\]*)", text, re.IGNORECASE | re.DOTALL)
    if match is None or os.path.isfile(text):
        file, token = text, None
    else:
        file, token = match[1] or match[3], match[2] if match[1] else match[4]
    if not file or token == "":
        raise InputError(f"embedding {text!r}: expected FILE or FILE:TOKEN, such as toy.safetensors:<toy>")
    return Path(file), token


def embedding_files(embeddings: EmbeddingFile | Sequence[EmbeddingFile]) -> list[tuple[Path, str | None]]:
    """Convert the argument `embeddings`, one or several, to files and tokens.

    Raises: InputError for anything else, for a file that is not there, and for a pickle, before anything is read.
    """
    single = isinstance(embeddings, str | Path) or (
        isinstance(embeddings, tuple) and len(embeddings) == 2 and not os.path.isfile(str(embeddings[1]))
    )
    entries: Any = [embeddings] if single else embeddings
    if not isinstance(entries, list | tuple):
        raise InputError(f"embeddings is {entries!r}: expected a path, FILE:TOKEN, (file, token), or a list of them")
    found: list[tuple[Path, str | None]] = []
    for one in entries:
        if isinstance(one, str):
            found.append(parse(one))
        elif isinstance(one, Path):
            found.append((one, None))
        elif isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str | Path) and isinstance(one[1], str):
            found.append((Path(one[0]), one[1]))
        else:
            raise InputError(f"embedding {one!r}: expected a path, FILE:TOKEN, or (file, token)")
    for file, _ in found:
        if os.path.isdir(file):  # also of a name that is too long to be one
            files = ", ".join(sorted(inner.name for inner in file.glob("*.safetensors"))[:5])
            raise InputError(f"embedding {str(file)!r} is a folder: give a file in it ({files or 'no safetensors'})")
        if not os.path.isfile(file):
            raise InputError(f"no such embedding: {str(file)!r}: expected a safetensors file")
        if file.suffix.lower() in PICKLES:
            convert = "torch.load(FILE, weights_only=True) and safetensors.torch.save_file({TOKEN: vectors}, NEW)"
            raise InputError(refuse_pickle(file, f"convert it, where you trust it, by {convert}"))
    return found


def add_files(
    files: Sequence[tuple[Path, str | None]], text: PromptEncoder, loras: Iterable[Path] = ()
) -> list[dict[str, Any]]:
    """Add the embeddings in some files, and those that came in the files of LoRAs, to a model.

    Returns: for each file what identifies it, for a clip's settings. Raises: InputError as `read` and `add` do.
    """
    embeddings = [read(read_tensors([file]), file.stem, token, file.name) for file, token in files]
    brought = [one for file in dict.fromkeys(loras) if file.suffix != ".json" for one in bundled(file)]
    add([*embeddings, *brought], text)
    return [
        {"sha256": sha256([file]), "token": embedding.token}
        for (file, _), embedding in zip(files, embeddings, strict=True)
    ]


def bundled(file: Path) -> list[Embedding]:
    """The embeddings in the file of a LoRA. Raises: InputError as `read` does, or for a tensor of another name."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors([file]).items():
        if key.startswith("bundle_emb."):
            match = BUNDLED.fullmatch(key)
            if match is None:
                raise InputError(
                    f"{file.name}: {key} is no embedding: expected bundle_emb.TOKEN. with string_to_param.*, "
                    "emb_params, clip_l or clip_g"
                )
            found.setdefault(match[1], {})[match[2]] = tensor
    return [read(tensors, token, source=f"{file.name} ({token[:40]!r})") for token, tensors in found.items()]


def read(tensors: Mapping[str, Tensor], name: str, token: str | None = None, source: str | None = None) -> Embedding:
    """The embedding in some tensors.

    Args:
        tensors: those of one embedding, named as in one of the three kinds of files.
        name: the token, if the tensors do not name it.
        token: the token, whatever the tensors say. source: for errors, by default the name.
    Raises: InputError for tensors that are no embedding.
    """
    source = source or name
    if tensors and tensors.keys() <= TOWERS.keys():
        vectors: dict[int | None, Tensor] = {i: tensors[key] for key, i in TOWERS.items() if key in tensors}
    elif len(tensors) == 1:
        (key,) = tensors
        vectors, name = {None: tensors[key]}, name if key in UNNAMED else key
    else:
        some, (there, advice) = ", ".join(sorted(tensors)[:2]) or "none", contents(tensors)
        advice = advice or "expected emb_params, or clip_l and clip_g, or one tensor named by its token"
        raise InputError(f"{source} is no embedding: it has {there or f'{len(tensors)} tensors ({some})'}: {advice}")
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.ndim not in (1, 2) or not tensor.numel():
            raise InputError(
                f"{source} is no embedding: {key} is {tensor.dtype} {tuple(tensor.shape)}: expected numbers "
                "(vectors, width)"
            )
        if not tensor.float().isfinite().all():
            raise InputError(f"{source}: {key} has values that are not finite: the file is damaged")
    token = name if token is None else token
    if not token.strip() or not token.isprintable():
        raise InputError(f"{source}: the token is {token!r}: expected a text of one line: give FILE:TOKEN")
    return Embedding(
        token.strip(), {tower: tensor.reshape(-1, tensor.shape[-1]) for tower, tensor in vectors.items()}, source
    )


def add(embeddings: Sequence[Embedding], text: PromptEncoder) -> None:
    """Add the tokens and the vectors of embeddings to the text towers of a model.

    With two towers an embedding needs vectors for both; they may come from two files with the same token.
    Raises: InputError, before anything is added, for vectors of another width, for a tower without vectors, and for a
        token that is in the vocabulary already.
    """
    widths = [encoder.config.hidden_size for encoder in text.encoders]
    tokens: dict[str, dict[int, Tensor]] = {}
    for one in embeddings:
        for tower, vectors in _placed(one, widths).items():
            if tower in tokens.setdefault(one.token, {}):
                raise InputError(f"{one.source}: there is another embedding for {one.token!r}: give FILE:TOKEN")
            tokens[one.token][tower] = vectors
    for token, found in tokens.items():
        if len(found) < len(widths):
            missing = next(tower for tower in range(len(widths)) if tower not in found)
            raise InputError(
                f"the embedding {token!r} has no vectors for text tower {missing + 1}, which is {widths[missing]} wide:"
                f" expected one for {_names(widths)} (clip_l and clip_g)"
            )
    for tower, (_, tokenizer) in enumerate(text.towers):
        tokenizer.check_new({token: len(found[tower]) for token, found in tokens.items()})
    for token, found in tokens.items():
        text.add(token, [found[tower] for tower in range(len(widths))])


def _placed(embedding: Embedding, widths: Sequence[int]) -> dict[int, Tensor]:
    """The vectors by the number of the tower. Raises: InputError if they fit none."""
    if len(embedding.vectors) == len(widths) == 1:
        numbered = dict(enumerate(embedding.vectors.values()))
    else:  # a file that does not say for which tower it is: the only one of its width
        numbered = {}
        for tower, vectors in embedding.vectors.items():
            fitting = [i for i, width in enumerate(widths) if width == vectors.shape[1]]
            numbered[(fitting[0] if len(fitting) == 1 else -1) if tower is None else tower] = vectors
    if any(tower not in range(len(widths)) or rows.shape[1] != widths[tower] for tower, rows in numbered.items()):
        got = [rows.shape[1] for rows in embedding.vectors.values()]
        family = f" ({FAMILIES[tuple(got)]})" if tuple(got) in FAMILIES else ""
        raise InputError(
            f"{embedding.source}: the embedding {embedding.token!r} is {_names(got)} wide{family}, the model's text is "
            f"{_names(widths)} wide: it is for another model"
        )
    return numbered


def _names(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))


class Adapters:
    """The LoRAs and the textual inversions of a model, from files that must not change while it is loaded.

    Args: lora, embeddings: as in `ZS2.from_pretrained`.
    Raises: InputError for files that are not there.
    """

    def __init__(
        self, lora: LoRA | Sequence[LoRA] = (), embeddings: EmbeddingFile | Sequence[EmbeddingFile] = ()
    ) -> None:
        self.loras, self.inversions = lora_files(lora), embedding_files(embeddings)
        self.files_of_loras = [files_of(path) for path, _ in self.loras]
        self._files = [*(one for files in self.files_of_loras for one in files), *(file for file, _ in self.inversions)]
        self._before = identity(self._files)

    def apply(self, unet: UNet, text: PromptEncoder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Merge the LoRAs into a model and add the tokens.

        Returns: the digests of both, for the settings. Raises: InputError for files that do not fit, and
        `ChangedFile`.
        """
        with loading("a LoRA or an embedding"):
            for file, scale in self.loras:
                merge(file, scale, unet, text.encoders)
            added = add_files(self.inversions, text, [one for files in self.files_of_loras for one in files])
        pairs = zip(self.files_of_loras, self.loras, strict=True)
        digests = [{"sha256": sha256(files), "scale": float(scale)} for files, (_, scale) in pairs]
        check_identity(self._files, self._before)
        return digests, added
