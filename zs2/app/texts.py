"""The pieces of HTML that the page shows. No torch and no Gradio here. Every text of a visitor is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

HEADER = """<header class="zs2"><h1>zs2</h1><p>Video from an image model, without training. Press
<b>Make a clip</b>, then move λ and μ and look.</p></header>"""
EMPTY = '<div class="empty" aria-hidden="true"><span></span><span></span><span></span></div>'
BEFORE, WITHIN, AFTER = r"(?<![\w./:~-])", r"(?:[^\s/'\"]+/)", r"(?![\w-]|\.\w)"  # of a path in a text
OTHER = """<h3>Settings of the right clip</h3><p>The left one has the settings of the page. <b>With and without</b>
makes four clips instead: with both parts of the method, without either, and without both.</p>"""
PLAY = '<button type="button" class="play">Pause</button>'


def figure(film: str, caption: str) -> str:
    """A film with the line below it; nothing if there is no film."""
    if not film:
        return ""
    lines = "<br>".join(escape(line) for line in caption.splitlines())
    return f"<figure>{film}<figcaption>{PLAY}<span>{lines}</span></figcaption></figure>"


def progress(text: str, step: int = 0, steps: int = 0) -> str:
    """How far the work is. With steps=0, nobody knows how far."""
    value = f' value="{step}" max="{steps}"' if steps else ""
    return f'<div class="status"><progress aria-label="progress"{value}></progress><span>{escape(text)}</span></div>'


def message(text: str, notes: Sequence[str], names: Mapping[str, str], *, wrong: bool = False) -> str:
    """What came of the work, with warnings.

    names: what stands for paths of the server, see `without_folders`. wrong: whether it failed.
    """
    role = "alert" if wrong else "status"
    line, *others = (escape(without_folders(one, names)) for one in (text, *notes))
    lines = "".join(f'<p class="note">{note}</p>' for note in others)
    kind = "status wrong" if wrong else "status"
    return f'<div class="{kind}" role="{role}"><span>{line}</span></div>{lines}'


def duration(seconds: float) -> str:
    """`about 8 s`, `about 3 min`."""
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"


def without_folders(text: str, names: Mapping[str, str]) -> str:
    """A text for visitors, in which no folder of the server is named: files go by their names.

    names: what stands for paths that are known, which may have spaces or be relative; nothing for mere folders.
    """
    for path, name in sorted(names.items(), key=lambda item: -len(item[0])):
        end = AFTER if name else f"(?:/{WITHIN}*|{AFTER})"
        text = re.sub(BEFORE + re.escape(path) + end, name.replace("\\", r"\\"), text)
    return re.sub(f"{BEFORE}/{WITHIN}+", "", text)
