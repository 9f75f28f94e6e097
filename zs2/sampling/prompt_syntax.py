r"""The prompt syntax of A1111's web UI: weights in brackets, and BREAK. No torch here.

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
from itertools import groupby
from operator import itemgetter

from zs2.errors import InputError

PLAIN, A1111 = SYNTAXES = ("plain", "a1111")
ROUND, SQUARE = 1.1, 1 / 1.1
WEIGHT_MAX = 100.0
DEPTH_MAX = 100

Section = tuple[tuple[str, float], ...]  # texts with their weights
Sections = tuple[Section, ...]  # what BREAK divides

_TOKEN = re.compile(r"\\([()\[\]\\]?)|([(\[])|:\s*([+-]?[.\d]+)\s*\)|([)\]])|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")
_REFUSED = (
    (r"<(?:lora|lyco|hypernet):[^<>]*>", "a network in the prompt", "give --lora FILE:SCALE"),
    (r"\[[^\[\]]*:\s*[\d.]+%?\s*\]", "a prompt that changes while sampling", "remove it, or escape the brackets: \\["),
    (r"\[[^\[\]|]*\|[^\[\]]*\]", "alternating words", "remove them, or escape the brackets: \\["),
    (r"\bAND\b", "prompts that are composed", "write `and`, or sample them apart"),
    (r"\{[^{}|]*\|[^{}]*\}", "a wildcard", "choose one, or write a prompt a line, with --prompts"),
    (r"(?<!\w)__[\w/-]{1,100}?__(?!\w)", "a wildcard", "choose one, or write a prompt a line, with --prompts"),
)
_SIGNS = re.compile(r"(?<!\\)[(\[]|\bBREAK\b|" + "|".join(pattern for pattern, _, _ in _REFUSED))


def has_syntax(text: str) -> bool:
    """Whether a text would be read otherwise with this syntax than as plain text."""
    return _SIGNS.search(text) is not None


def words(text: str) -> str:
    """A prompt without its syntax."""
    return " ".join(words for section in parse(text) for words, _ in section)


def parse(text: str) -> Sections:
    r"""A prompt to its sections, each of texts with weights, neighbours of equal weight joined.

    Raises: InputError for what is refused, for more than 100 brackets within each other, and for a weight that is no
        number from −100 to 100.
    """
    plain = re.sub(r"\\.", "  ", text, flags=re.DOTALL)  # of the same length; what is escaped is no syntax
    for pattern, name, advice in _REFUSED:
        if found := re.search(pattern, plain):
            part = text[found.start() : found.end()]
            raise InputError(f"the prompt has {name}, {part!r}: zs2 does not read this: {advice}")
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
