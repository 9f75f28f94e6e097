"""Options that follow from tables: those of the method, and those of sampling. No torch here.

A new row of zs2/method.py, or a new field of `Request`, is an option of the command lines without a word here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.checkpoints.own_settings import OF_METHOD, OF_REQUEST
from zs2.cli.command import program
from zs2.cli.values import numbers, pair
from zs2.method import ATTENTION_KINDS, METHOD, NOISE_MODELS, PARAMETERS, Method
from zs2.sampling.request import DEFAULTS, OPTIONS

READERS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "whole": int,
    "number": float,
    "pair": pair(float),
    "clip": str,
}
KINDS: dict[str, tuple[str, Iterable[str]]] = {
    "attn": ("attention over frames", ATTENTION_KINDS),
    "noise": ("initial noises", NOISE_MODELS),
}
# Options that decide what is loaded, with the keyword of `ZS2.from_pretrained`. They are the same in all commands.
LOADING = {"lora": "lora", "embedding": "embeddings", "vae": "vae", "variant": "variant", "prediction": "prediction"}
LOADING |= {"controlnet": "controlnet"}  # of --control, which also names a clip
OWN = ", or the checkpoint's own"  # ends the default of what a zs2.json may say


def add_method(group: argparse._ArgumentGroup) -> None:
    """Add an option for each setting of `Method`."""
    for name in METHOD:
        if name in KINDS:
            what, table = KINDS[name]
            text = f"{what}: {', '.join(table)} (default {getattr(Method(), name)})"
            group.add_argument(flag(name), metavar="KIND", help=_escaped(text))
        else:
            parameter = PARAMETERS[name]
            metavar = ("X" if parameter.length == 1 else "X,Y") + ",…" * bool(parameter.several)
            metavar = "FILE" if parameter.file else metavar
            several = f"; or several X,Y,…: {parameter.several}" if parameter.several else ""
            text = f"of {', '.join(_defaults(name))}: {parameter.help}{several} (default {_default_text(name)})"
            group.add_argument(flag(name), type=parameter_reader(name), metavar=metavar, help=_escaped(text))


def parameter_reader(name: str) -> Callable[[str], Any]:
    """What reads the text of a parameter. It raises ValueError or ArgumentTypeError for another text."""
    parameter = PARAMETERS[name]
    if parameter.several:
        return numbers(parameter.number)
    return parameter.number if parameter.length == 1 else pair(parameter.number)


def add_model(group: argparse._ArgumentGroup) -> None:
    """Add the option for the model."""
    group.add_argument(
        "--model",
        metavar="PATH",
        help="a folder in the diffusers layout, a .safetensors file of SD 1.x, 2.x or XL in the original layout, or a "
        f"model on the hub: owner/name[@revision], or a short name, see {program('models')} (default {DEFAULT_MODEL})",
    )


def chosen_model(options: Mapping[str, Any]) -> str:
    """The model of the options, or the default one."""
    return options.get("model", DEFAULT_MODEL)


def add_loading(group: argparse._ArgumentGroup, **several: Any) -> None:
    """Add the options of LOADING. several: how argparse reads an option of several values."""
    more = "; may be given several times" if several.get("action") == "append" else ""
    group.add_argument(
        "--lora",
        metavar="FILE[:SCALE]",
        help="merge a LoRA, or a DoRA, LoCon, LoHa, LoKr or difference: a .safetensors file, or a folder of PEFT or "
        f"diffusers{more}",
        **several,
    )
    group.add_argument(
        "--embedding",
        metavar="FILE[:TOKEN]",
        help=f"add a textual inversion, for prompts and negative prompts with its token{more}",
        **several,
    )
    group.add_argument(
        "--vae",
        metavar="PATH",
        help="take the VAE from here: a folder in the diffusers layout, a model's folder, or a .safetensors file in "
        "either layout",
    )
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="which of a folder's weights, such as bf16 (default: plain, then fp16; in half precision the other "
        "way round; then the only one)",
    )
    group.add_argument(
        "--prediction", metavar="P", help="epsilon or v, for single files of SD 2, which do not say which it is"
    )


def loading(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `ZS2.from_pretrained` for the options of LOADING that are given."""
    return {keyword: options[name] for name, keyword in LOADING.items() if name in options}


def add_sampling(group: argparse._ArgumentGroup) -> None:
    """Add an option for each sampling option of `Request`."""
    for name, row in OPTIONS.items():
        default = (value_text(DEFAULTS[name]) or "nothing") + (OWN if name in OF_REQUEST else "")
        text = _escaped(f"{row.help} (default {row.unset if DEFAULTS[name] is None else default})")
        several: dict[str, Any] = {"action": "append"} if row.several else {}
        if name == "control":
            group.add_argument(flag(name), action=AddControl, nargs=2, metavar=("MODEL", "CLIP"), help=text)
        elif row.kind == "flag":
            group.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text)
        else:
            group.add_argument(flag(name), type=READERS[row.kind], metavar=row.metavar, help=text, **several)


class AddControl(argparse.Action):
    """Adds a ControlNet to `controlnet`, and its clip to `control`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """values: a model and a clip."""
        for name, value in zip(("controlnet", "control"), values, strict=True):
            setattr(namespace, name, [*getattr(namespace, name, []), value])


def flag(name: str) -> str:
    """The option of a keyword: `--deep-cache` of `deep_cache`."""
    return f"--{name.replace('_', '-')}"


def value_text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _defaults(parameter: str) -> dict[str, Any]:
    """The default of a parameter for each kind that has it."""
    defaults = {name: kind.defaults for name, kind in ATTENTION_KINDS.items()}
    defaults |= {name: kind.defaults for name, kind in NOISE_MODELS.items()}
    return {name: values[parameter] for name, values in defaults.items() if parameter in values}


def _default_text(parameter: str) -> str:
    at_steps = PARAMETERS[parameter].at_steps
    steps = DEFAULTS["steps"]
    texts: dict[str, list[str]] = {}  # kinds by the default that they share
    for kind, default in _defaults(parameter).items():
        text = value_text(default) if at_steps is None else f"{value_text(at_steps(default, steps))} of {steps} steps"
        text = PARAMETERS[parameter].unset if default is None and at_steps is None else text
        texts.setdefault(text, []).append(kind)
    own = OWN if parameter in OF_METHOD else ""
    if len(texts) == 1:
        return next(iter(texts)) + own
    return ", ".join(f"{text} of {' and '.join(kinds)}" for text, kinds in texts.items()) + own


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
