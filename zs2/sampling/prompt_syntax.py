r"""Prompts: schedules over frames, and the syntax of A1111's web UI: weights in brackets, and BREAK. No torch here.

A schedule has a prompt for some frames, its keys: `{0: "panda face", 15: "fox face"}`. Between two keys the contexts
are interpolated, or the first key's prompt stays. Before the first key there is its prompt, after the last one its.

The syntax within a prompt:

    prompt   = { text | escape | "(" prompt ")" | "(" prompt ":" number ")" | "[" prompt "]" | "BREAK" }
    escape   = "\(" | "\)" | "\[" | "\]" | "\\"

    (word)        weight 1.1        ((word))    1.1 · 1.1
    (word:1.3)    weight 1.3        [word]      1 / 1.1
    BREAK         what follows is encoded apart, in a chunk of its own

Weights multiply where brackets are nested. A bracket that is never closed reaches to the end, and one that was never
opened is text, as there. Neighbours of equal weight are one text, so `(red:1.0)` is `red`.

What a weight does: see `zs2.models.prompt_encoder`. What that syntax has beyond weights is refused by name: prompts
that change while sampling, alternation, composition, networks, and the wildcards of its extensions.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from zs2.errors import InputError, brief, together, warn_of_each

PLAIN, A1111 = SYNTAXES = ("plain", "a1111")
LINEAR, CUT = MODES = ("linear", "cut")  # how a schedule passes from one key to the next
MOST_DIGITS = 9  # of the index of a frame
ROUND, SQUARE = 1.1, 1 / 1.1
WEIGHT_MAX = 100.0
DEPTH_MAX = 100

Section = tuple[tuple[str, float], ...]  # texts with their weights
Sections = tuple[Section, ...]  # what BREAK divides

_TOKEN = re.compile(r"\\([()\[\]\\]?)|([(\[])|:\s*([+-]?[.\d]+)\s*\)|([)\]])|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")
_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_REFUSED = (
    (r"<\s*(?i:lora|lyco|hypernet)\s*:[^<>]*>?", "a network in the prompt", "give --lora FILE:SCALE"),
    (
        r"\[[^\[\]]*:\s*[+-]?[\d.]+%?\s*\]",
        "a prompt that changes while sampling",
        "remove it, or escape the brackets: \\[",
    ),
    (r"\[[^\[\]|]*\|[^\[\]]*\]", "alternating words", "remove them, or escape the brackets: \\["),
    (r"\bAND\b", "prompts that are composed", "write `and`, or sample them apart"),
    (r"\{[^{}|]*\|[^{}]*\}", "a wildcard", "choose one, or write a prompt a line, with --prompts"),
    (r"(?<!\w)__[\w/-]{1,100}?__(?!\w)", "a wildcard", "choose one, or write a prompt a line, with --prompts"),
)
_SIGNS = re.compile(r"[\\(\[]|\bBREAK\b|" + "|".join(pattern for pattern, _, _ in _REFUSED))

Prompt: TypeAlias = str | Sequence[str] | Mapping[int, str]  # one for all frames, one a frame, or a schedule


class Blend(NamedTuple):
    """The prompt of a frame between two keys: the share `share`, above 0 and below 1, of the text `after`."""

    before: str
    after: str
    share: float


def texts_of(prompt: Prompt) -> list[str]:
    """The texts of a prompt."""
    return [prompt] if isinstance(prompt, str) else [*(prompt.values() if isinstance(prompt, Mapping) else prompt)]


def prompt_of(prompt: Prompt, frame: int, mode: str | None) -> str | Blend:
    """What a frame shows. mode: of a schedule; None is linear."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Mapping):
        return prompt[min(frame, len(prompt) - 1)]
    keys = [*prompt]
    at = bisect_right(keys, frame) - 1
    before, after = keys[max(at, 0)], keys[min(at + 1, len(keys) - 1)]
    if mode == CUT or frame <= before or before == after or prompt[before] == prompt[after]:
        return prompt[before]
    return Blend(prompt[before], prompt[after], (frame - before) / (after - before))


def most_contexts(prompt: Prompt, frames: int, mode: str | None) -> int:
    """How many different contexts so many frames have at most."""
    texts = len(texts_of(prompt))
    return frames if isinstance(prompt, Mapping) and mode != CUT and texts > 1 else min(texts, frames)


def checked_prompt(prompt: Any, negative: Any, frames: int | None, mode: str | None) -> Prompt:
    """A prompt; a schedule by rising frames, whose keys are whole numbers, or their digits, as JSON has them.

    Args: negative: the negative prompt, which is checked, too. frames: those of the clip; None if it has no end.
    Raises: InputError for what is no text, for more prompts than frames, and for the keys of a schedule.
    """
    texts = texts_of(prompt) if isinstance(prompt, str | list | tuple | Mapping) else [None]
    if not all(isinstance(text, str) for text in (*texts, negative)):
        raise InputError(f"prompt is {brief(prompt)}, negative prompt {brief(negative)}: expected texts")
    if any("\ud800" <= c <= "\udfff" for text in (*texts, negative) for c in text):
        raise InputError(f"prompt is {brief(prompt)}: expected text in Unicode (the bytes given are not UTF-8)")
    if isinstance(prompt, Mapping):
        return _checked_schedule(prompt, frames, mode)
    if not texts or (frames is not None and len(texts) > frames):
        raise InputError(f"{len(texts)} prompts for {frames} frames: expected from 1 to {frames} (give more frames?)")
    return prompt


def _checked_schedule(prompt: Mapping[Any, str], frames: int | None, mode: str | None) -> dict[int, str]:
    """A schedule by rising frames. Raises: InputError for wrong keys, and for a prompt without effect."""
    found: dict[int, str] = {}
    for key, text in prompt.items():
        is_number = isinstance(key, int) and not isinstance(key, bool)
        if not is_number and not (isinstance(key, str) and re.fullmatch(rf"\d{{1,{MOST_DIGITS}}}", key, re.ASCII)):
            raise InputError(f"a key of the prompts is {brief(key)}: expected the index of a frame, from 0")
        frame = int(key)
        if frame in found or not 0 <= frame < 10**MOST_DIGITS:
            raise InputError(f"a key of the prompts is {brief(key)}: expected each frame once, from 0")
        found[frame] = text
    if not found:
        raise InputError("the prompts have no key: expected the prompt of one frame at least")
    found = dict(sorted(found.items()))
    for before, key in pairwise(found):
        if frames is not None and key >= frames and (mode == CUT or before >= frames - 1):
            raise InputError(
                f"the prompt of frame {key} has no effect in a clip of {frames} frames: expected fewer prompts (give "
                "more frames?)"
            )
    return found


def has_syntax(text: str) -> bool:
    """Whether a text would be read otherwise with this syntax than as plain text."""
    return _SIGNS.search(text) is not None


def read_as(texts: Sequence[str], syntax: str | None) -> str | None:
    """The syntax to name where texts are to be read as with `syntax`, but without the warning that None may give."""
    return PLAIN if syntax is None and any(map(has_syntax, texts)) else syntax


def check_syntax(texts: Sequence[str], syntax: str | None) -> None:
    """Raise InputError for a text that the syntax can't read. If None is named, warn of a text that has syntax, and
    raise InputError for one with a network, which would not be used."""
    with together():
        for text in texts:
            if syntax == A1111:
                parse(text)
            elif syntax is None and (sign := _SIGNS.search(text)):
                _refuse(text, text, _REFUSED[:1], ", or prompt_syntax plain to keep it as text")
                warn_of_each(
                    "prompt",
                    f"the prompt {brief(text)}",
                    f"is read as plain text, its {brief(sign[0])} too: give prompt_syntax a1111 to read weights in it, "
                    "or plain to keep it as text",
                )


def words(text: str) -> str:
    """A prompt without its syntax."""
    return " ".join(words for section in parse(text) for words, _ in section)


def parse(text: str) -> Sections:
    r"""A prompt to its sections, each of texts with weights, neighbours of equal weight joined.

    Raises: InputError for what is refused, for more than 100 brackets within each other, and for a weight that is no
        number from −100 to 100.
    """
    plain = re.sub(r"\\.", "  ", text, flags=re.DOTALL)  # of the same length; what is escaped is no syntax
    for _ in range(DEPTH_MAX):  # from the innermost square brackets out
        _refuse(text, plain, _REFUSED)
        plain, inner = _INNERMOST.subn(r" \1 ", plain)
        if not inner:
            break
    pieces: list[tuple[str | None, float]] = []  # None is BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(start: int, factor: float) -> None:
        pieces[start:] = [(piece, weight * factor) for piece, weight in pieces[start:]]

    for token in _TOKEN.finditer(text):
        escaped, opening, number, closing = token.groups()
        if escaped is not None:
            pieces.append((escaped, 1.0))
        elif opening:
            opened[opening].append(len(pieces))
            if len(opened["("]) + len(opened["["]) > DEPTH_MAX:
                raise InputError(f"the prompt has more than {DEPTH_MAX} brackets within each other: expected fewer")
        elif number and opened["("]:
            weigh(opened["("].pop(), _number(number))
        elif closing and opened["(" if closing == ")" else "["]:
            weigh(opened["(" if closing == ")" else "["].pop(), ROUND if closing == ")" else SQUARE)
        else:
            parts = _BREAK.split(token[0])
            for index, part in enumerate(parts):
                part = part.lstrip() if index else part
                part = part.rstrip() if index < len(parts) - 1 else part
                pieces += [(None, 1.0)] * (index > 0) + [(part, 1.0)]
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        for start in opened[bracket]:
            weigh(start, factor)
    return _joined(pieces)


def _refuse(text: str, plain: str, rows: Sequence[tuple[str, str, str]], more: str = "") -> None:
    """Raise InputError for what is refused by these rows of _REFUSED.

    plain: the text, of the same length, without what is no syntax. more: ends the advice.
    """
    for pattern, name, advice in rows:
        if found := re.search(pattern, plain):
            part = brief(text[found.start() : found.end()])
            raise InputError(f"the prompt has {name}, {part}: zs2 does not read this: {advice}{more}")


def _number(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = float("nan")
    if not abs(weight) <= WEIGHT_MAX:
        raise InputError(f"the prompt has the weight {text!r:.40}: expected a number from -100 to 100")
    return weight


def _joined(pieces: list[tuple[str | None, float]]) -> Sections:
    """Sections of pieces, without empty ones, neighbours of equal weight joined."""
    sections: list[list[tuple[str, float]]] = [[]]
    for text, weight in pieces:
        if text is None:
            sections.append([])
        elif text:
            sections[-1].append((text, weight))
    if any(abs(weight) > WEIGHT_MAX for section in sections for _, weight in section):
        raise InputError("the weights of nested brackets multiply to more than 100: expected fewer brackets")
    runs = [groupby(section, key=itemgetter(1)) for section in sections]
    return tuple(tuple(("".join(text for text, _ in run), weight) for weight, run in section) for section in runs)
