"""The files of a tokenizer, as transformers reads them: the vocabulary, merges, and tokens that were added later.

transformers has stored added tokens in several forms, and a folder can have more than one of them:

    tokenizer_config.json     `added_tokens_decoder`, a table of all added tokens; if it is there, nothing else counts
    special_tokens_map.json   the named tokens (`bos_token` …), and lists of others
    added_tokens.json         token and id, for each token that vocab.json lacks
    tokenizer.json            vocabulary, merges and added tokens in one file, which wins over vocab.json and merges.txt
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from zs2.errors import InputError, brief, choose, warn
from zs2.system.json_files import LARGE_BYTES, MOST_TOKENS, Json, Reader, read_json
from zs2.system.regular_files import read_text

CONFIG, MAP, ADDED, WHOLE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA, OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
NOT_NULL = {
    *("added_tokens_decoder", "fast_tokenizer_files", "init_inputs", "model_input_names", "model_max_length"),
    *("padding_side", "split_special_tokens", "truncation_side"),
}
FEW = 10  # words of a vocabulary without a merge that are special tokens, or nobody will miss
# Other values would mean other files, or other arguments.
FIXED: dict[str, tuple[Any, ...]] = {"fast_tokenizer_files": ([WHOLE], []), "init_inputs": ([],)}

Token: TypeAlias = AddedToken | str


@dataclass
class TokenizerFiles:
    """The content of a tokenizer's files.

    vocab: the id of each token. merges: pairs of tokens, in the order of merging.
    special: named tokens; a name that no file has is missing, one that is null is None.
    added: tokens by the id that a file gives them. None: a file gives no id.
    others: tokens that have no id in any file.
    max_length: the most tokens of a prompt, or None. padding_side, truncation_side: `right` or `left`.
    split_special_tokens: whether special tokens in a prompt are text like any other.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    special: dict[str, Token | None] = field(default_factory=dict)
    added: dict[int | None, AddedToken] = field(default_factory=dict)
    others: list[Token] = field(default_factory=list)
    max_length: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"
    split_special_tokens: bool = False

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read a folder. Raises: any exception for files that make no sense; InputError where it is known why.

        Warns of words in the vocabulary that no merge makes, as where the end of merges.txt is lost: transformers cuts
        them into pieces.
        """
        config = _optional(folder, CONFIG)
        what = f"{folder.name}/{CONFIG}"
        read = Reader(what, config, FIXED, NOT_NULL)
        whole = _optional(folder, WHOLE)
        vocab, merges, sides = _one_file(whole) if whole else _two_files(folder)
        if any(type(i) is not int or not 0 <= i < MOST_TOKENS for i in vocab.values()):
            raise TypeError(f"its ids are not whole numbers below {MOST_TOKENS}")
        special, added, extra = _tokens(folder, config, whole)
        sides = {side: choose(f"{side} in {what}", config.get(side, sides[side]), ("right", "left")) for side in sides}
        merged = {first + second for first, second in merges} | contents([*special.values(), *added.values(), *extra])
        lost = [word for word in vocab if len(word.removesuffix("</w>")) > 1 and word not in merged]
        if len(lost) > FEW:
            warn(
                f"{folder.name}/: no merge makes {len(lost)} of the {len(vocab)} words, such as {brief(lost[-1])}, so "
                "prompts are cut into smaller pieces: are its files whole?"
            )
        files = cls(vocab, merges, {name: special.pop(name) for name in NAMES if name in special}, added)
        files.others = [*(token for token in special.values() if token is not None), *extra]
        files.max_length = read.whole("model_max_length", None, 2) if "model_max_length" in config else None
        files.split_special_tokens = read.flag("split_special_tokens", False)
        files.padding_side, files.truncation_side = sides["padding_side"], sides["truncation_side"]
        return files


def _tokens(
    folder: Path, config: Json, whole: Json
) -> tuple[dict[str, Token | None], dict[int | None, AddedToken], list[Token]]:
    """Named tokens (those of `NAMES`, and others that end in _token), added tokens by id, and extra special ones."""
    special: dict[str, Any] = {key: config[key] for key in config if key in NAMES or _is_token(key, config[key])}
    old = OLD_EXTRA in config and not config.get(EXTRA)
    extra, has_extra = config.get(OLD_EXTRA if old else EXTRA), old or EXTRA in config
    if isinstance(extra, dict):
        special, extra, has_extra = special | extra, None, False
    added: dict[int | None, AddedToken] = {}
    if "added_tokens_decoder" in config:
        added = {int(i): described(token) for i, token in config["added_tokens_decoder"].items()}
    else:
        late: Any = None  # a list of the map that counts only if there is no other
        for key, value in _optional(folder, MAP).items():
            if key == EXTRA and isinstance(value, dict):
                special, extra, has_extra = special | value, None, False
            elif key == EXTRA:
                new = [described(token, special=True) if isinstance(token, dict) else token for token in value or ()]
                extra, has_extra = [*(extra or ()), *(token for token in new if token not in (extra or ()))], True
            elif key == OLD_EXTRA:
                late = value
            elif key in NAMES or _is_token(key, value):
                special[key] = described(value, special=True) if isinstance(value, dict) else value
        special_texts = {_content(token) for name, token in special.items() if name in NAMES and token}
        special_texts |= {_content(token) for token in extra or ()}
        for text, i in _optional(folder, ADDED).items():
            added[i] = AddedToken(text, normalized=text not in special_texts, special=text in special_texts)
        for entry in whole.get("added_tokens", ()):
            added[entry["id"]] = described(entry)
        extra = extra if has_extra else late
    by_content = {token.content: token for token in added.values()}
    for name, value in special.items():
        token = described(value) if isinstance(value, dict) and value.get("__type") == "AddedToken" else value
        if not isinstance(token, AddedToken | str | None):
            raise InputError(f"{folder.name}/: {name} is {value!r}: expected a token")
        special[name] = by_content.get(_content(token), token) if token is not None else None
    for value in extra or ():
        if not isinstance(value, AddedToken | str):
            raise InputError(f"{folder.name}/: an extra special token is {value!r}: expected a token")
    return special, added, list(extra or ())


def described(token: Mapping[str, Any], **changes: bool) -> AddedToken:
    """A token from its JSON. One without content is empty, and empty ones are never added."""
    flags = {key: value for key, value in token.items() if key not in ("content", "id", "__type", *changes)}
    return AddedToken(token["content"] or "", **flags, **changes)


def _is_token(key: str, value: Any) -> bool:
    """Whether a JSON's key names a special token of the model's own."""
    typed = isinstance(value, dict) and value.get("__type") == "AddedToken"
    return key.endswith("_token") and (isinstance(value, str) or typed)


def _content(token: Any) -> str:
    if isinstance(token, dict):
        return token["content"]
    return token.content if isinstance(token, AddedToken) else token


def contents(tokens: Iterable[Token | None]) -> set[str]:
    """The texts of tokens."""
    return {_content(token) for token in tokens if token is not None}


def _optional(folder: Path, name: str) -> Json:
    return read_json(folder / name, LARGE_BYTES) if (folder / name).exists() else {}


def _two_files(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, str]]:
    if not (folder / "vocab.json").exists():
        raise FileNotFoundError(f"{WHOLE}: no such file")
    lines = read_text(folder / "merges.txt", LARGE_BYTES).splitlines()
    merges = [pair(line) for line in lines if line and not line.startswith("#version")]
    return (
        dict(read_json(folder / "vocab.json", LARGE_BYTES)),
        merges,
        {"padding_side": "right", "truncation_side": "right"},
    )


def _one_file(whole: Json) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, str]]:
    """The vocabulary and the merges of a tokenizer.json, and the sides on which it pads and cuts."""
    model = whole["model"]
    without = Backend.from_str(dumps({**whole, "added_tokens": [], "model": {**model, "vocab": {}, "merges": []}}))
    vocab = model["vocab"]
    merges = [pair(entry if isinstance(entry, str) else " ".join(entry)) for entry in model["merges"]]
    found = {"padding_side": without.padding, "truncation_side": without.truncation}
    sides = {side: setting["direction"].lower() if setting else "right" for side, setting in found.items()}
    return dict(vocab), merges, sides


def pair(line: str) -> tuple[str, str]:
    """A merge. (A tuple at once: thousands of lists on the way set off the garbage collector, which is slow.)"""
    first, second = line.split(" ")
    return first, second
