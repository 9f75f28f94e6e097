"""The prompts of a study: their sets, the file with prompts, and the default prompts. No torch here.

A file of prompts is in the dialect of `zs2.cli.prompt_files`, without options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.prompt_files import read_prompt_file
from zs2.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """A prompt and its set: `closed` names the thing and the background, `open` leaves the look to the noise.

    inputs: its own ones, the names of their options and their digests: see inputs.py.
    """

    text: str
    set: str = "closed"
    inputs: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        own = "".join(f", {name} {digest[:12]}" for name, digest in self.inputs)
        return f"{self.text!r} ({self.set}{own})"


# For models that have no examples of their own: those of real pictures.
GENERAL = (
    *(
        Prompt(text)
        for text in (
            "a panda surfing on a wave in a blue ocean",
            "a red sports car on a desert road under a clear sky",
            "a golden retriever running on a sandy beach at sunset",
            "a white sailboat on a calm lake with mountains behind it",
            "an astronaut walking on the grey surface of the moon, black sky",
            "a horse galloping across a green meadow",
            "a campfire burning in a snowy forest at night",
            "a hot air balloon over a field of yellow sunflowers",
        )
    ),
    *(
        Prompt(text, "open")
        for text in ("", "a cat", "a waterfall", "a city at night", "a flower", "people dancing", "clouds", "a bird")
    ),
)


def default_prompts(own: OwnSettings) -> tuple[Prompt, ...]:
    """The examples of a checkpoint's own settings, closed and open; for one without, eight of each."""
    prompts = (*(Prompt(text) for text in own.prompts), *(Prompt(text, "open") for text in own.open_prompts))
    return prompts or GENERAL


def read_prompts(file: str) -> tuple[Prompt, ...]:
    """The prompts of a file. Raises: InputError for a file without prompts, a repeated prompt or an unknown set."""
    why = "in a study all prompts have the same options"
    return checked([Prompt(line.without_options(why), line.set) for line in read_prompt_file(file)], file)


def checked(prompts: Sequence[Prompt], where: str) -> tuple[Prompt, ...]:
    """The prompts. Raises: InputError if there are none, or one is repeated."""
    if not prompts:
        raise InputError(f"{where}: no prompt in it: expected one a line")
    repeated = next((prompt for prompt, times in Counter(prompts).items() if times > 1), None)
    if repeated:
        raise InputError(f"{where}: the prompt {repeated} is there twice: expected each once")
    return tuple(prompts)
