"""Text for a terminal: control characters are shown and not obeyed, and a long text is shortened."""

from __future__ import annotations

import contextlib
import io
import traceback
import warnings

import pytest

from zs2.cli.command import command, parser
from zs2.errors import InputError, brief
from zs2.system.terminal import MOST, Escaping, show, shown

ORDERS = ["\x1b[2J", "\x1b]0;title\x07", "\r", "\x08", "\x9b31m", "\u202e", "\u2028", "\ud800", "\x7f", "\x00"]


@pytest.mark.parametrize("order", ORDERS)
def test_a_control_character_is_shown(order):
    text = shown(f"a{order}b")
    assert text.isprintable()
    assert text[0] + text[-1] == "ab"
    assert "\\" in text


@pytest.mark.parametrize("order", ORDERS)
def test_what_a_library_prints_is_shown(order):
    out = io.StringIO()
    with contextlib.redirect_stderr(Escaping(out)):
        try:
            raise ValueError(f"a{order}b")
        except ValueError:
            traceback.print_exc()
    lines = out.getvalue().split("\n")
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "")
    assert lines[-2] == shown(f"ValueError: a{order}b")


@pytest.mark.parametrize("text", ["", "rose", "λ = 0.1 · é 日本 🌹", "x" * MOST])
def test_other_text_stays(text):
    assert shown(text) == text


@pytest.mark.parametrize("letter", ["x", "\x1b", "🌹"])
def test_a_long_text_keeps_its_ends(letter):
    text = shown("begins" + letter * 10**6 + "ends")
    assert len(text) <= MOST
    assert (text[:6], text[-4:]) == ("begins", "ends")
    assert " characters) … " in text
    assert shown("x" * 5000, most=None) == "x" * 5000


def test_a_line_is_one_line(capsys):
    show("a\nb", "c")
    assert capsys.readouterr().out == "a\\nb\nc\n"


@pytest.mark.parametrize("order", ORDERS)
def test_errors_and_warnings_of_commands_are_shown(capsys, order):
    def run(options):
        warnings.warn(f"a label {order}" + "x" * 10**6, stacklevel=1)
        raise InputError(f"another {order}" + "y" * 10**6)

    assert command(parser("sample", "", ""), run, []) == 2
    lines = capsys.readouterr().err.split("\n")[:-1]
    assert [line.split(":")[1] for line in lines] == [" warning", " error"]
    assert all(line.isprintable() and len(line) <= MOST for line in lines)


def test_a_value_in_a_message_is_brief():
    values = (10**5000, [10**5000], "x" * 10**6, list(range(10**5)), {"a": "\x1b" * 1000}, [[[[[1]]]]])
    for value in values:
        assert len(brief(value)) < 700
        assert brief(value).isprintable()
