"""Reading the values of options: numbers in pairs, seeds, sizes, shards. No torch here."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from zs2.method import SEED_MAX

MOST_CLIPS = 100_000
RANDOM = -1  # a seed to be drawn


def pair(number: Callable[[str], Any]) -> Callable[[str], tuple[Any, Any]]:
    """A reader of `A,B`, two numbers of a kind, which returns (A, B)."""

    def read(text: str) -> tuple[Any, Any]:
        try:
            first, second = text.split(",")
            return number(first), number(second)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers, such as 12,12") from None

    return read


def numbers(number: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of one number, or of several `A,B,C`, which returns a tuple."""

    def read(text: str) -> Any:
        try:
            values = tuple(map(number, text.split(",")))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number, or several such as 0.9,0.5") from None
        return values if len(values) > 1 else values[0]

    return read


def drawn_seeds(text: str) -> list[int]:
    """As `seeds`, but −1 or `random`, which is −1 in the result, stands for a seed to be drawn."""
    parts = text.split(",")
    others = [part for part in parts if part.strip() not in ("random", "-1")]
    return [RANDOM] * (len(parts) - len(others)) + (seeds(",".join(others)) if others else [])


def one_seed(text: str) -> int:
    """The seed of one clip, which is not drawn."""
    if not re.fullmatch(r"\d{1,4000}", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one seed: expected a number (seeds are drawn by --seed random on the command line)"
        )
    return int(text)


def seeds(text: str) -> list[int]:
    """`3`, `0..3` or `1,5,7` (or both: `0..3,9`) to a list of seeds."""
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d{1,4000})(?:\.\.(\d{1,4000}))?\s*", part, re.ASCII)
        if len(part) > 4000:
            raise argparse.ArgumentTypeError(f"{part[:20]}…: expected numbers from 0 to {SEED_MAX}")
        if not match:
            raise argparse.ArgumentTypeError(f"{text!r} is no seed: expected a number, a range 0..3 or a list 1,5,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < MOST_CLIPS:
            raise argparse.ArgumentTypeError(f"{part!r}: expected a range that rises, of at most {MOST_CLIPS} seeds")
        chosen += range(first, last + 1)
    repeated = [seed for seed, count in Counter(chosen).items() if count > 1]
    if repeated:
        raise argparse.ArgumentTypeError(f"{text!r} has {repeated[0]} twice: expected each seed once")
    return chosen


def size(text: str) -> tuple[int, int]:
    """`WxH` to (width, height) in pixels."""
    match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: expected WIDTHxHEIGHT, such as 512x512")
    return int(match[1]), int(match[2])


def shard(text: str) -> tuple[int, int]:
    """`I/N`, I from 1, to (I − 1, N)."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: expected I/N with I from 1 to N, such as 1/4")
    return int(match[1]) - 1, int(match[2])
