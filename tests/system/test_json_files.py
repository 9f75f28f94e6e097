"""Reading a stranger's JSON: what is no JSON, no regular file or too large is refused, and so is a wrong type."""

from __future__ import annotations

import os
import re
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zs2.errors import InputError
from zs2.system.json_files import LARGE_BYTES, MOST_BYTES, Reader, parse_json, read_json
from zs2.system.regular_files import read_bytes


def bound(path: Path) -> None:
    short = os.path.relpath(path)  # the name of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(short)


NONE: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a socket": bound,
}


@pytest.mark.parametrize("kind", NONE)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    NONE[kind](tmp_path / "x")
    begin, worked = time.monotonic(), time.process_time()
    with pytest.raises(InputError, match=f"{kind}: expected a file"):
        read_json(tmp_path / "x")
    assert time.process_time() - worked < 1
    assert time.monotonic() - begin < 10  # also where other programs use the processor


def test_a_file_without_a_size_is_refused():
    with pytest.raises(InputError, match="more than the 0 bytes that it says"):
        read_bytes("/proc/self/maps", 10**6)
    with pytest.raises(InputError, match="names no file"):
        read_bytes("a\0b", 10)


@pytest.mark.parametrize("most", [MOST_BYTES, LARGE_BYTES])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, most):
    with open(tmp_path / "x", "wb") as file:
        file.truncate(most + 1)  # which takes no room on the disk
    with pytest.raises(InputError, match=f"x: {most + 1} bytes: expected at most {most}"):
        read_json(tmp_path / "x", most)
    assert most <= 64 * 2**20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "can't be read as JSON"),
        ("[]", "expected a JSON object, got a list"),
        ("null", "expected a JSON object, got a NoneType"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"\\uDFFF": 1}', "surrogates not allowed"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested more than 100 deep"),
        ('{"a": ' + "[" * 10**5, "can't be read as JSON"),
        ('{"a": 1' + "0" * 5000 + "}", "can't be read as JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(text, words):
    with pytest.raises(InputError, match=f"^f: .*{words}"):
        parse_json("f", text)


def test_what_json_can_say_is_read():
    assert parse_json("f", '{"a": "\\ud83c\\udf39", "b": [' + "[" * 50 + "]" * 50 + "]}")["a"] == "🌹"


def test_a_key_that_is_there_twice_is_a_warning():
    with pytest.warns(UserWarning, match=r"^f: 'a', 'b' is there twice: the last one counts$"):
        found = parse_json("f", '{"x": {"a": 1, "b": 2, "a": 3, "b": 4}}')
    assert found == {"x": {"a": 3, "b": 4}}  # as Python's reader, and so the libraries, have it
    many = "{" + ",".join(f'"{i}": {i}' for i in range(10**5)) + ', "0": 1}'
    begin = time.process_time()
    with pytest.warns(UserWarning, match="'0' is there twice"):
        parse_json("f", many)
    assert time.process_time() - begin < 2


READS: dict[str, Callable[[Reader], Any]] = {
    "whole": lambda read: read.whole("a", None, 0, 100),
    "number": lambda read: read.number("a", None, 0, 100),
    "numbers": lambda read: read.numbers("a", 0, 100),
    "flag": lambda read: read.flag("a", True),
    "text": lambda read: read.text("a"),
    "name": lambda read: read.name("a", None, ("x", "y")),
    "path_name": lambda read: read.path_name("a"),
    "within": lambda read: read.within("a", 2),
    "object": lambda read: read.object("a"),
    "texts": lambda read: read.texts("a"),
    "kinds": lambda read: read.kinds("a", (), ("x", "y")),
    "levels": lambda read: read.levels("a", 1, most=100),
    "pair": lambda read: read.pair("a"),
}
VALUES: dict[str, tuple[Any, set[str]]] = {  # a value of a JSON, and the methods that take it
    "null": (None, {"numbers", "flag", "object", "texts", "pair"}),
    "true": (True, {"flag"}),
    "zero": (0, {"whole", "number"}),
    "minus zero": (-0.0, {"number"}),
    "large": (10**9, set()),
    "very large": (10**400, set()),
    "infinite": (float("1e999"), set()),
    "half": (0.5, {"number"}),
    "text": ("x", {"text", "name", "path_name"}),
    "a path": ("../x", {"text"}),
    "hidden": (".x", {"text"}),
    "empty": ("", {"text"}),
    "list": ([], {"numbers", "within", "kinds"}),
    "numbers": ([1, 2], {"numbers", "levels", "pair"}),
    "true in a list": ([True, 1], set()),
    "large in a list": ([10**400, 1], set()),
    "null in a list": ([None, 1], {"pair"}),
    "texts": (["x", "y"], {"kinds"}),
    "lists": ([[1], [2]], set()),
    "object": ({}, {"object", "texts"}),
    "object of texts": ({"x": "y"}, {"object", "texts"}),
    "object of numbers": ({"x": 1}, {"object"}),
    "objects": ([{}, {}], {"within"}),
    "too many objects": ([{}, {}, {}], set()),
}


@pytest.mark.parametrize("method", READS)
def test_after_the_reader_nothing_has_a_wrong_type(method):
    for name, (value, takers) in VALUES.items():
        read = Reader("f", {"a": value}, {})
        if method in takers:
            READS[method](read)
        else:
            with pytest.raises(InputError, match=r"f"):
                pytest.fail(f"{method} takes {name}: {READS[method](read)!r}")


def test_every_error_names_the_file_and_the_key():
    for method, reading in READS.items():
        for value, takers in VALUES.values():
            if method not in takers:
                with pytest.raises(InputError) as caught, warnings.catch_warnings():
                    reading(Reader("the file", {"a": value}, {}))
                assert re.search(r"\ba\b|block type", str(caught.value)), caught.value
                assert "the file" in str(caught.value)
                assert len(str(caught.value)) < 1000
