"""CLIP's byte-pair tokenizer, built on `tokenizers` from a checkpoint's own vocabulary."""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Encoding, Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from torch import Tensor

from zs2.errors import InputError, check_texts, warn, whole
from zs2.models.tokenizer_files import NAMES, Token, TokenizerFiles, contents, pair

# The pieces that OpenAI's CLIP splits a prompt into before merging bytes.
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
SPECIAL["pad_token"] = "<|endoftext|>"


class Tokenizer:
    """Convert prompts to token ids: start token, words, end token, padding.

    Args:
        vocab: the id of each token. merges: pairs of tokens, in the order of merging.
        special: `bos_token`, `eos_token`, `unk_token`, `pad_token`; the missing ones are CLIP's.
        max_length: the number of tokens of a prompt, with its start and end.
        files: the files of a checkpoint, for tokens that were added to the vocabulary, and on which side it pads and
            cuts.
    Raises: InputError if a special token is null, or neither in the vocabulary nor added; if an added token has
        another id than its file says.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        special: Mapping[str, Token | None],
        max_length: int,
        files: TokenizerFiles | None = None,
    ) -> None:
        files = files or TokenizerFiles(vocab, merges)
        tokens: dict[str, Token | None] = {**SPECIAL, **special}
        self.max_length, self.padding_side, self.truncation_side = max_length, files.padding_side, files.truncation_side
        self.backend = _backend(vocab, merges, tokens, files)
        added = self.backend.get_added_tokens_decoder()
        self.added = {token.content for token in added.values()}  # texts of tokens that are never cut into pieces
        self.vocab_size = max([*vocab.values(), *added]) + 1
        bos, eos, pad = (_text(tokens[name]) for name in ("bos_token", "eos_token", "pad_token"))
        self.bos_id, self.eos_id, self.pad_id = map(self._id, (bos, eos, pad))
        self.backend.post_processor = processors.RobertaProcessing(
            (eos, self.eos_id), (bos, self.bos_id), trim_offsets=False, add_prefix_space=False
        )

    def _id(self, token: str) -> int:
        return self.backend.token_to_id(token)  # type: ignore[return-value]  # it is there

    @classmethod
    def from_folder(cls, folder: str | Path, max_length: int | None = None) -> Tokenizer:
        """Read a folder's files: see tokenizer_files.py.

        Args:
            max_length: the most tokens of a prompt. `tokenizer_config.json` can only lower it.
        Raises: InputError if files are missing or are not a byte-pair vocabulary.
        """
        folder = Path(folder)
        try:
            files = TokenizerFiles.read(folder)
            limits = [n for n in (files.max_length, max_length) if n is not None]
            return cls(files.vocab, files.merges, files.special, whole("model_max_length", min(limits), 2), files)
        except InputError:
            raise
        except Exception as error:  # a broken vocabulary makes `tokenizers` raise a bare Exception
            raise InputError(
                f"{folder.name}/: no CLIP vocabulary ({error}): expected vocab.json and merges.txt, or tokenizer.json"
            ) from error

    @classmethod
    def of_clip(cls, max_length: int = 77, pad_token: str = SPECIAL["pad_token"]) -> Tokenizer:
        """CLIP's own tokenizer of 49,408 tokens. Its merges come with the package (data/: OpenAI's, MIT licence)."""
        packed = (Path(__file__).parent / "data" / "clip_merges.txt.gz").read_bytes()
        merges = [pair(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]
        letters = byte_letters()
        tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
        tokens += [SPECIAL["bos_token"], SPECIAL["eos_token"]]
        vocab = {token: i for i, token in enumerate(tokens)}
        return cls(vocab, merges, {"pad_token": pad_token}, max_length)

    def check_new(self, tokens: Mapping[str, int]) -> None:
        """Raise InputError if tokens can't be added.

        tokens: the number of vectors of each.
        """
        taken: set[str] = set()
        for token, vectors in tokens.items():
            if vectors > self.max_length - 2:
                raise InputError(f"the token {token!r} has {vectors} vectors: a prompt holds {self.max_length - 2}")
            base, _, number = token.rpartition("_")
            if number.isdecimal() and (base in self.added or base in tokens):
                raise InputError(f"the token {token!r} reads like a vector of {base!r}: give another, FILE:TOKEN")
            for name in _numbered(token, max(vectors, 2)):  # `<toy>_1` would be a second vector
                if name in taken or self.backend.token_to_id(name) is not None:
                    raise InputError(f"the token {name!r} is in the vocabulary already: give another, FILE:TOKEN")
                taken.add(name)

    def add(self, token: str, vectors: int) -> None:
        """Add a token that is never cut into pieces. Its vectors have the next ids: those of `<toy>`, `<toy>_1`, …"""
        for name in _numbered(token, vectors):
            self.backend.add_tokens([AddedToken(name)])
            if self._id(name) != self.vocab_size:
                raise InputError(
                    f"tokenizer: the new token {name!r} has the id {self._id(name)}: ids are missing before it"
                )
            self.vocab_size += 1
            self.added.add(name)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts → ids (b, max_length), int64. If a prompt is too long, a warning quotes the part that is cut off.

        Raises: InputError for what is no list of texts, such as one text.
        """
        check_texts(prompts)
        return torch.tensor([self._encode(prompt) for prompt in prompts], dtype=torch.int64)

    @property
    def content(self) -> list[Any]:
        """All that decides the ids of a prompt, as JSON: for a digest. The names of settings that the backend lacks are
        in it where they are not CLIP's own."""
        unusual = {
            "padded on the left": self.padding_side == "left",
            "cut on the left": self.truncation_side == "left",
            "special tokens are text": self.backend.encode_special_tokens,
        }
        return [self.backend.to_str(), self.max_length, self.pad_id, *(name for name, on in unusual.items() if on)]

    def expand(self, prompt: str) -> str:
        """A prompt with all vectors of its textual inversions: where `<toy>_1`, `<toy>_2` … were added beside `<toy>`,
        they follow it, as in the pipelines of diffusers. Where tokens overlap, the longest counts, as in `encode`."""
        if not any(f"{token}_1" in self.added for token in self.added):
            return prompt
        several: dict[str, list[str]] = {}
        for token in self.used(prompt):
            others = [*itertools.takewhile(self.added.__contains__, (f"{token}_{i}" for i in itertools.count(1)))]
            several |= {token: [token, *others]} if others else {}
            if others and token not in prompt:
                warn(
                    f"the prompt has {token!r} in another spelling: only the first of its {len(others) + 1} vectors is "
                    "used, as in diffusers: write it exactly so"
                )
        tokens = "|".join(map(re.escape, sorted(self.added, key=len, reverse=True)))
        return re.sub(tokens, lambda match: " ".join(several.get(match[0], [match[0]])), prompt)

    def used(self, prompt: str) -> list[str]:
        """The added tokens in a prompt, each once."""
        tokens = self.backend.encode(prompt, add_special_tokens=False).tokens
        return [token for token in dict.fromkeys(tokens) if token in self.added]

    def groups(self, text: str) -> list[list[int]]:
        """The ids of a text without start and end, in groups that belong together: the vectors of one inversion."""
        encoding = self.backend.encode(self.expand(text), add_special_tokens=False)
        found: list[list[int]] = []
        base = ""
        for token, one in zip(encoding.tokens, encoding.ids, strict=True):
            if found and base in self.added and token == f"{base}_{len(found[-1])}":
                found[-1].append(one)
            else:
                found.append([one])
                base = token
        return found

    def framed(self, ids: list[int]) -> list[int]:
        """Ids with start, end and padding: `max_length` in all. They must leave room for start and end."""
        ids = [self.bos_id, *ids, self.eos_id]
        padding = [self.pad_id] * (self.max_length - len(ids))
        return ids + padding if self.padding_side == "right" else padding + ids

    def _encode(self, prompt: str) -> list[int]:
        encoding: Encoding = self.backend.encode(prompt)
        ids, kept = encoding.ids, self.max_length - 1
        if len(ids) > self.max_length:
            if self.truncation_side == "right":
                cut = prompt[encoding.offsets[kept][0] :].strip()
                ids = [*ids[:kept], self.eos_id]
            else:
                cut = prompt[: encoding.offsets[-kept][0]].strip()
                ids = [self.bos_id, *ids[-kept:]]
            warn(f"the prompt has {len(encoding.ids)} tokens, this model reads {self.max_length}: cut off {cut!r}")
        return self.framed(ids[1:-1])


def _backend(
    vocab: dict[str, int], merges: list[tuple[str, str]], special: Mapping[str, Token | None], files: TokenizerFiles
) -> Backend:
    """The tokenizer without start and end. Tokens are added in the order of transformers: their ids depend on it."""
    declared = contents(files.added.values())
    for name in SPECIAL:
        token = special[name]
        if (token is None or not _text(token)) and name != "unk_token":
            raise InputError(f"tokenizer: {name} is null: expected a token")
        if token is not None and _text(token) not in declared and _text(token) not in vocab:
            raise InputError(f"tokenizer: {name} {_text(token)!r} is not in its vocabulary of {len(vocab)}")
    if special["unk_token"] is None and not {*byte_letters(), *(f"{x}</w>" for x in byte_letters())} <= vocab.keys():
        raise InputError("tokenizer: unk_token is null, and the vocabulary lacks a byte: expected one of them")
    backend = Backend(BPE(vocab, merges, unk_token=_text(special["unk_token"]), end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    order = sorted(files.added.items(), key=lambda item: item[0])  # type: ignore[arg-type, return-value]
    tokens: list[Token] = [token for _, token in order]
    others = [special[name] for name in NAMES if special.get(name) is not None] + files.others
    tokens += [token for token in others if token is not None and _text(token) not in declared]
    named = contents(special.values())
    for token in tokens:
        new = AddedToken(token, special=True) if isinstance(token, str) else token
        new.special = new.special or new.content in named
        backend.add_tokens([new])
    backend.encode_special_tokens = files.split_special_tokens
    for i, added in files.added.items():
        if i is not None and added.content and backend.token_to_id(added.content) != i:
            got = backend.token_to_id(added.content)
            raise InputError(
                f"tokenizer: the added token {added.content!r} would get the id {got}, but its file says {i}"
            )
    return backend


def _numbered(token: str, vectors: int) -> list[str]:
    """The texts that stand for the vectors of a token: `<toy>`, `<toy>_1`, `<toy>_2`, …"""
    return [token, *(f"{token}_{i}" for i in range(1, vectors))]


def _text(token: Token | None) -> str:
    return token.content if isinstance(token, AddedToken) else str(token)


def byte_letters() -> list[str]:
    """A printable character for each byte, in the order of GPT-2's vocabulary: printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(0x100 - len(printable)))]
