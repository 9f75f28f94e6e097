"""CLIP's byte-pair tokenizer, built on `tokenizers` from a checkpoint's own vocabulary."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Encoding, Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from torch import Tensor

from zs2.errors import InputError, whole
from zs2.system.json_files import read_json

# The pieces that OpenAI's CLIP splits a prompt into before merging bytes.
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
SPECIAL["pad_token"] = "<|endoftext|>"


class Tokenizer:
    """Convert prompts to token ids: start token, words, end token, padding.

    Args:
        vocab: the id of each token. merges: pairs of tokens, in the order of merging.
        special: `bos_token`, `eos_token`, `unk_token`, `pad_token`, as strings or as their JSON.
        max_length: the number of tokens of a prompt, with its start and end.
    Raises: InputError if a special token is not in the vocabulary.
    """

    def __init__(
        self, vocab: dict[str, int], merges: list[tuple[str, str]], special: dict[str, Any], max_length: int
    ) -> None:
        tokens = {name: _added_token(special.get(name, default)) for name, default in SPECIAL.items()}
        for name, token in tokens.items():
            if token.content not in vocab:
                raise InputError(f"tokenizer: {name} {token.content!r} is not in its vocabulary of {len(vocab)}")
        bos, eos = (tokens[name].content for name in ("bos_token", "eos_token"))
        self.max_length, self.vocab_size = max_length, max(vocab.values()) + 1
        self.pad_id = vocab[tokens["pad_token"].content]
        self.eos_id = vocab[eos]
        unknown = tokens["unk_token"].content
        self.backend = Backend(BPE(vocab, merges, unk_token=unknown, end_of_word_suffix="</w>"))
        self.backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self.backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self.backend.post_processor = processors.RobertaProcessing(
            (eos, vocab[eos]), (bos, vocab[bos]), trim_offsets=False, add_prefix_space=False
        )
        self.backend.add_special_tokens(list(tokens.values()))

    @classmethod
    def from_folder(cls, folder: str | Path, max_length: int | None = None) -> Tokenizer:
        """Read `vocab.json` and `merges.txt`, or `tokenizer.json`, and the configuration files.

        Args:
            max_length: the most tokens of a prompt. `tokenizer_config.json` can only lower it.
        Raises: InputError if files are missing or are not a byte-pair vocabulary.
        """
        folder = Path(folder)
        try:
            config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
            special = {name: config[name] for name in SPECIAL if config.get(name)}
            # As in transformers: newer checkpoints have one table of tokens; older ones have a second file, which wins.
            if "added_tokens_decoder" in config:
                table = {token["content"]: token for token in config["added_tokens_decoder"].values()}
                special = {name: table.get(token, token) for name, token in special.items() if isinstance(token, str)}
            elif (folder / "special_tokens_map.json").exists():
                special |= read_json(folder / "special_tokens_map.json")
            if (folder / "vocab.json").exists():
                vocab = read_json(folder / "vocab.json")
                lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
                merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
            else:
                model = read_json(folder / "tokenizer.json")["model"]
                vocab = model["vocab"]
                merges = [_pair(pair if isinstance(pair, str) else " ".join(pair)) for pair in model["merges"]]
            if any(not isinstance(i, int) or i < 0 for i in vocab.values()):
                raise TypeError("its ids are not whole numbers")
            limits = [n for n in (config.get("model_max_length"), max_length) if n is not None]
            return cls(vocab, merges, special, whole("model_max_length", min(limits), 2))
        except Exception as error:  # a broken vocabulary makes `tokenizers` raise a bare Exception
            raise InputError(
                f"{folder.name}/: no CLIP vocabulary ({error}): expected vocab.json and merges.txt, or tokenizer.json"
            ) from error

    @classmethod
    def of_clip(cls, max_length: int = 77, pad_token: str = SPECIAL["pad_token"]) -> Tokenizer:
        """CLIP's own tokenizer of 49,408 tokens. Its merges come with the package (data/: OpenAI's, MIT licence)."""
        packed = (Path(__file__).parent / "data" / "clip_merges.txt.gz").read_bytes()
        merges = [_pair(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]
        letters = byte_letters()
        tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
        tokens += [SPECIAL["bos_token"], SPECIAL["eos_token"]]
        vocab = {token: i for i, token in enumerate(tokens)}
        return cls(vocab, merges, {"pad_token": pad_token}, max_length)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts → ids (b, max_length), int64. If a prompt is too long, a warning quotes the part that is cut off."""
        return torch.tensor([self._encode(prompt) for prompt in prompts], dtype=torch.int64)

    def _encode(self, prompt: str) -> list[int]:
        encoding: Encoding = self.backend.encode(prompt)
        ids = encoding.ids
        if len(ids) > self.max_length:
            kept = self.max_length - 1
            cut = prompt[encoding.offsets[kept][0] :].strip()
            warnings.warn(
                f"the prompt has {len(ids)} tokens, this model reads {self.max_length}: cut off {cut!r}", stacklevel=4
            )
            ids = [*ids[:kept], self.eos_id]
        return ids + [self.pad_id] * (self.max_length - len(ids))


def _pair(line: str) -> tuple[str, str]:
    """The pair of a merge, as a tuple. (Thousands of lists would trigger the garbage collector, which is slow.)"""
    first, second = line.split(" ")
    return first, second


def byte_letters() -> list[str]:
    """A printable character for each byte, in the order of GPT-2's vocabulary: printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(0x100 - len(printable)))]


def _added_token(token: str | dict[str, Any]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    return AddedToken(**{k: v for k, v in token.items() if k not in ("special", "__type", "id")}, special=True)
