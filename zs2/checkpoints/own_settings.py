"""`zs2.json` in a checkpoint's folder: settings that suit it, example prompts, and what it knows. No torch here.

An example of the file, in which every key is optional:

    {"steps": 25, "guidance": 5.0, "lam": 0.3,
     "prompts": ["red apple on a yellow background"], "open_prompts": ["", "rocket"], "things": ["red apple", "rocket"]}

A folder that has a part of a model, such as a UNet alone, names the model that has the others: {"base": "sd15"}.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zs2.checkpoints.locate import local_path, refuse_missing
from zs2.errors import InputError, brief, counted, together, warn_of_each
from zs2.method import PARAMETERS
from zs2.system.json_files import Reader, read_json

FILE = "zs2.json"
OF_REQUEST, OF_METHOD = ("steps", "guidance", "image_guidance"), ("lam",)  # the keywords of each
MOST_BYTES, MOST_TEXTS, MOST_CHARACTERS = 2**20, 10_000, 1_000  # limits of the file, of a list, of a text
NEAREST = 3  # the number of names in a warning
NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,96}")  # of a folder, without a path


@dataclass(frozen=True)
class OwnSettings:
    """The contents of a checkpoint's `zs2.json`. Values that it does not have are None, or empty.

    Args:
        name: that of the checkpoint.
        steps, guidance, image_guidance: those of a `Request`. The last is of editing models.
        lam: that of a `Method`.
        prompts: examples that name a thing and a background. The first one is the example of `zs2 sample`.
        open_prompts: examples that leave the look to the noise.
        things: the names of all things that the checkpoint knows; empty if these are too many for a list.
        base: the model that has the parts which this folder lacks; see `locate_base`.
    """

    name: str = ""
    steps: int | None = None
    guidance: float | None = None
    image_guidance: float | None = None
    lam: float | None = None
    prompts: tuple[str, ...] = ()
    open_prompts: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    base: str | None = None

    @classmethod
    def read(cls, path: Path, name: str | None = None) -> OwnSettings:
        """Read the settings of the checkpoint at a path. A single file has none, nor has a folder without `zs2.json`.

        Args:
            name: by default that of the folder.
        Raises: InputError for a file that is no JSON object, or a value of the wrong type or out of range. Warns of
            unknown keys.
        """
        file, name = path / FILE, name or path.resolve().name
        if not path.is_dir() or not file.exists():
            return cls(name)
        reader = Reader(str(file), read_json(file, MOST_BYTES), {})
        reader.warn_of_unknown(set(cls.__dataclass_fields__) - {"name"})
        json = reader.json
        try:
            lam = None if json.get("lam") is None else PARAMETERS["lam"].check(json["lam"])
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        return cls(
            name,
            steps=None if json.get("steps") is None else reader.whole("steps", None),
            guidance=None if json.get("guidance") is None else float(reader.number("guidance", 0)),
            image_guidance=None if json.get("image_guidance") is None else float(reader.number("image_guidance", 0)),
            lam=lam,
            base=_base(file, json.get("base")),
            **{key: _texts(file, key, json.get(key)) for key in ("prompts", "open_prompts", "things")},
        )

    @classmethod
    def of(cls, model: str | Path) -> OwnSettings:
        """The settings of a model, if it is on this machine; else none.

        Raises: InputError as `read` does, and for a model that comes with zs2, where it is not.
        """
        path = local_path(model)
        if path is None:
            refuse_missing(model)
        return cls(Path(model).name) if path is None else cls.read(path)

    @property
    def request(self) -> dict[str, Any]:
        """The settings of a `Request`, as keywords."""
        return {name: value for name in OF_REQUEST if (value := getattr(self, name)) is not None}

    def request_with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The same for these options, which are given: at guidance 1, an image guidance has no effect."""
        idle = "image_guidance" if options.get("guidance") == 1 else None
        return {name: value for name, value in self.request.items() if name != idle}

    @property
    def method(self) -> dict[str, Any]:
        """The settings of a `Method`, as keywords."""
        return {name: value for name in OF_METHOD if (value := getattr(self, name)) is not None}

    def summary(self, names: Sequence[str]) -> str:
        """One line about the settings of these names, such as `sd15's own settings: 25 steps`. All must be set."""
        values = {"guidance": "guidance {:g}", "image_guidance": "image guidance {:g}", "lam": "λ {:g}"}
        shown = [counted(self.steps or 0, "step")] if "steps" in names else []
        shown += [text.format(getattr(self, key)) for key, text in values.items() if key in names]
        return f"{self.name}'s own settings: {', '.join(shown)} ({FILE})" if shown else ""

    def warn_of_unknown_things(self, prompt: str | Sequence[str]) -> None:
        """Warn of prompts that name nothing that the checkpoint knows, once for all."""
        with together():
            for text in [prompt] if isinstance(prompt, str) else prompt:
                text = " ".join(text.split())
                if self.things and text and not any(_names(text, thing) for thing in self.things):
                    near = ", ".join(repr(thing) for thing in self.nearest(text))
                    count = f"none of the {counted(len(self.things), 'thing')} that {self.name} knows"
                    warn_of_each("prompt", f"the prompt {text[:80]!r}", f"names {count}: the nearest are {near}")

    def nearest(self, prompt: str, count: int = NEAREST) -> list[str]:
        """The things whose names are most like some words of the prompt.

        A word that only one name has counts like the whole name.
        """
        subject = re.split(r"\b(?:on|at|in|with)\b", prompt.lower())[0]
        words = [word for word in re.findall(r"\w+", subject) if len(word) > 2]
        parts = [" ".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)] or [prompt.lower()]
        shared = Counter(word for thing in self.things for word in {*thing.lower().split()})

        def likeness(thing: str) -> float:
            names = [thing.lower(), *(word for word in thing.lower().split() if shared[word] == 1)]
            return max(difflib.SequenceMatcher(None, part, name).ratio() for part in parts for name in names)

        return sorted(self.things, key=likeness, reverse=True)[:count]


def _names(prompt: str, thing: str) -> bool:
    """Whether a prompt has the name of a thing, as whole words."""
    return re.search(rf"(?<!\w){re.escape(thing.lower())}(?!\w)", prompt.lower()) is not None


def _texts(file: Path, key: str, value: object) -> tuple[str, ...]:
    """Check a list of texts of one line each, and return it."""
    texts = [] if value is None else value
    if not isinstance(texts, list) or len(texts) > MOST_TEXTS:
        raise InputError(f"{file}: {key}: expected a list of at most {MOST_TEXTS} texts")
    for text in texts:
        if not isinstance(text, str) or len(text) > MOST_CHARACTERS or not text.isprintable():
            limit = f"one line, at most {MOST_CHARACTERS} characters"
            raise InputError(f"{file}: {key} has {str(text)[:40]!r}: expected a text of {limit}")
    return tuple(texts)


def _base(file: Path, value: object) -> str | None:
    """Check the name of another model, and return it. It is no path, so that it means the same on every machine."""
    if value is None or (isinstance(value, str) and NAME.fullmatch(value)):
        return value
    raise InputError(
        f"{file}: base is {brief(value)}: expected a model's short name, or the name of a folder beside it"
    )
