"""The options of `python -m zs2.ablate`, from the command line or from a TOML file. No torch here."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from typing import Any

from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.cli import command
from zs2.cli.derived_options import add_loading, add_sampling, flag
from zs2.cli.derived_options import value_text as value_text
from zs2.cli.prompt_files import MOST_BYTES, SETS
from zs2.cli.values import numbers, seeds, shard, size
from zs2.errors import InputError, choose
from zs2.evaluation.measure import LPIPS_HELP
from zs2.method import ATTENTION_KINDS, NOISE_MODELS, PARAMETERS
from zs2.sampling.request import INPUTS, OPTIONS
from zs2.study.cells import FULL, NUMBERS, PRESETS, STUDY_LAM, STUDY_MU, kinds_with
from zs2.study.inputs import OWN, digest
from zs2.study.prompts import Prompt, checked
from zs2.system.devices import COMPILE_HELP, DTYPE_HELP
from zs2.system.regular_files import read_text
from zs2.video.encoding import FPS_HELP
from zs2.video.reading import opened

OUT = "out/study"
MOTION_HELP = (
    "find λ, a or the pixels of each cell, so that its clips have this motion (mean change of a pixel, such as 0.03), "
    "by halving on short clips of the first prompts; others stand at their own motion (default preset: motion)"
)
MANY = ("preset", "noise", "attn", *NUMBERS, "lora", "embedding")  # options that take several values
FLAGS = ["compile", *(name for name, option in OPTIONS.items() if option.kind == "flag")]
JOINED = ("seeds", *(name for name, option in OPTIONS.items() if option.kind == "pair"))  # lists that are one value
EACH = tuple(name for name, option in OPTIONS.items() if option.several)  # given once for each ControlNet


def parser() -> command.Parser:
    """The parser of the command line. Options not given are absent from what it returns."""
    p = command.parser(
        "ablate",
        "Run an ablation study: every cell (noise model × attention × λ × μ) on every prompt and seed, with metrics.\n"
        "The same command again continues a run that was stopped or killed.",
        """examples:
  %(prog)s                              the preset `paper` on the default checkpoint, to out/study
  %(prog)s --preset lambda mu --seeds 0..3 --out out/sweeps
  %(prog)s --noise dnm iid --attn tma sa --lam 0.05 0.1 --mu 0.5 0.98 --out out/grid      any grid
  %(prog)s --out out/sweeps --preset paper   more cells for a study, with its prompts, seeds and settings
  %(prog)s --out out/sweeps --shard 1/4      a quarter of the work (2/4, 3/4, 4/4 elsewhere, at any time)
  torchrun --nproc-per-node 4 -m zs2.ablate --out out/sweeps      the same on four GPUs
  %(prog)s study.toml                   these options from a file: preset = ["lambda", "mu"], steps = 25, …
then: """
        + f"{command.program('report')} out/study",
    )
    p.add_argument("file", nargs="?", metavar="STUDY.toml", help="options by their names; the command line wins")

    g = p.add_argument_group("cells: presets, or a grid (the product of all values), or both")
    g.add_argument(
        "--preset",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(PRESETS)} (default paper): the ablations with baselines and controls; the authors' sweeps of "
        "λ and μ; eight variants at equal motion, by --motion-target; the paper's experiments, one by one",
    )
    noises, kinds = ", ".join(NOISE_MODELS), ", ".join(ATTENTION_KINDS)
    g.add_argument("--noise", nargs="+", metavar="KIND", help=f"{noises} (default, in a grid: {FULL.noise})")
    g.add_argument("--attn", nargs="+", metavar="KIND", help=f"{kinds} (default, in a grid: {FULL.attn})")
    defaults = (("lam", "λ", f"{STUDY_LAM}, or the checkpoint's own"), ("mu", "μ", STUDY_MU))
    for name, symbol, default in defaults:
        several = "; several A,B,… are of the UNet's levels" if PARAMETERS[name].several else ""
        owners = f"of {', '.join(kinds_with(name))}; with presets one value (default {default}){several}"
        g.add_argument(f"--{name}", nargs="+", type=_reader(name), metavar=symbol, help=owners)
    owners = f"of {', '.join(kinds_with('alpha'))} noise, in a grid"
    g.add_argument("--alpha", nargs="+", type=float, metavar="A", help=owners)
    g.add_argument("--motion-target", type=float, metavar="M", help=MOTION_HELP)
    owners = f"of {', '.join(kinds_with('mu_end'))}, in a grid: μ of the last step (default: μ stays)"
    g.add_argument("--mu-end", nargs="+", type=_reader("mu_end"), metavar="μ₁", help=owners)
    for name, symbol in (("lam_high", "λₕ"), ("cutoff", "C")):
        owners = f"of {', '.join(kinds_with(name))} noise, in a grid: {PARAMETERS[name].help}"
        g.add_argument(flag(name), nargs="+", type=float, metavar=symbol, help=owners)

    g = p.add_argument_group("prompts and seeds: every cell is made for each pair")
    g.add_argument(
        "--prompts",
        metavar="FILE",
        help="one a line; after a line [open] those that leave the look to the noise, after [closed] (or without) "
        'those that name thing and background; "" is the empty prompt (default: 8 of each)',
    )
    g.add_argument("--seeds", type=seeds, metavar="S", help="a number, a range 0..3 or a list 1,5,7 (default 0..1)")

    g = p.add_argument_group("model and sampling, the same in all cells")
    same = f"as in {command.program('sample')} --help"
    g.add_argument("--model", metavar="PATH", help=f"{same} (default {DEFAULT_MODEL})")
    add_loading(g, nargs="+")
    g.add_argument("--device", help="cpu, cuda, cuda:1, mps … (default: the first there is; of torchrun, its own)")
    g.add_argument("--dtype", metavar="DTYPE", help=DTYPE_HELP)
    g.add_argument("--compile", action="store_true", help=COMPILE_HELP)
    add_sampling(g)
    g.add_argument("--size", type=size, metavar="WxH", help="pixels (default: what the model was trained at)")
    g.add_argument("--chunk", type=int, metavar="N", help="frames of a UNet call (default: all of a clip)")

    g = p.add_argument_group("metrics and output")
    g.add_argument(
        "--clip",
        metavar="MODEL",
        help="the CLIP that scores, a folder or on the hub (default: the model's own image_encoder/ if it has one, "
        "whose scores compare only with themselves, else the standard one); another one measures all clips again",
    )
    g.add_argument("--lpips", metavar="FILE", help=f"{LPIPS_HELP}; other weights measure all clips again")
    g.add_argument("--fps", metavar="N", help=FPS_HELP)
    g.add_argument("--out", metavar="DIR", help=f"the study's folder; a study that is there grows (default {OUT})")
    g.add_argument("--shard", type=shard, metavar="I/N", help="make only the I-th of N parts of the clips")
    g.add_argument("--dry-run", action="store_true", help="only print the cells, and how many clips are there")
    return p


def _reader(parameter: str) -> Callable[[str], Any]:
    """How a parameter is read: as a number, or as several if it may be."""
    return numbers(float) if PARAMETERS[parameter].several else float


def with_file(options: dict[str, Any]) -> dict[str, Any]:
    """The options, completed by those of the TOML file that they name. The command line wins.

    Values in the file are read like those on the command line. `prompts` may also be a list of texts, or a table of
    lists, `closed` and `open`; a prompt with inputs of its own is a table, such as {text = "…", source = "a.webp"}.

    Raises: InputError for a file that can't be read, an unknown option, or a value of another kind.
    """
    if "file" not in options:
        return options
    file = options.pop("file")
    try:
        content = tomllib.loads(read_text(file, MOST_BYTES, "utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: can't be read as TOML ({error})") from error
    reader = parser()
    reader.where = f"{file}: "
    names = [action.dest for action in reader._actions if action.dest not in ("help", "version", "file")]
    arguments: list[str] = []
    more: dict[str, Any] = {}
    for key, value in content.items():
        name = choose(f"option in {file}", key.replace("-", "_"), names)
        if name == "prompts" and isinstance(value, dict | list):
            more["prompts"], own = _prompts(file, value if isinstance(value, dict) else {SETS[0]: value})
            more |= {OWN: own} if own else {}
        elif name == "dry_run":
            raise InputError(f"{file}: dry-run is for the command line only")
        elif name in FLAGS:
            if not isinstance(value, bool):
                raise InputError(f"{file}: {name} is {value!r}: expected true or false")
            if value or name != "compile":  # which the command line can't switch off
                more[name] = value
        else:
            arguments += _arguments(file, name, value)
    found = vars(reader.parse_args(arguments)) | more | options
    if "prompts" in options:
        found.pop(OWN, None)
    if "controlnet" not in found and any("control" in own for own in found.get(OWN, {}).values()):
        raise InputError(
            f"{file}: a prompt has a control, and the study has no ControlNet: give control = [MODEL, CLIP], whose "
            "clip is that of the other prompts"
        )
    return found


def _arguments(file: str, name: str, value: Any) -> list[str]:
    """A value of TOML as arguments of the command line. For several ControlNets it is a list of values."""
    if name in EACH and isinstance(value, list):
        pairs = name in JOINED or name == "control"  # then a value is a list itself
        if not pairs or all(isinstance(one, list) for one in value):
            return [word for one in value for word in _one(file, name, one)]
    return _one(file, name, value)


def _one(file: str, name: str, value: Any) -> list[str]:
    if name == "control":
        if not isinstance(value, list) or len(value) != 2 or not all(isinstance(one, str) for one in value):
            raise InputError(f"{file}: control is {value!r}: expected a model and a clip, or a list of such pairs")
        return [flag(name), *value]
    if name in JOINED and isinstance(value, list):
        value = ",".join(map(str, value))
    values = value if isinstance(value, list) and name in MANY else [value]
    if not values or not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in values):
        several = ", or a list of them" if name in (*MANY, *JOINED) else ""
        raise InputError(f"{file}: {name} is {value!r}: expected a text or a number{several}")
    option = flag(name)
    if name not in MANY:
        return [f"{option}={values[0]}"]
    if any(isinstance(one, str) and one.startswith("-") for one in values):
        raise InputError(f"{file}: {name} is {value!r}: these are no values of it")
    return [option, *map(str, values)]


def _is_path(value: Any) -> bool:
    """Whether a value is the path of an input, or a list of them, one for each ControlNet."""
    return all(isinstance(one, str) for one in (value if isinstance(value, list) else [value]))


def _prompts(file: str, table: dict[str, Any]) -> tuple[Sequence[Prompt], dict[int, dict[str, Any]]]:
    """The prompts of a TOML table, by set, and the paths of their own inputs, by the number of the prompt."""
    prompts: list[Prompt] = []
    paths: dict[int, dict[str, Any]] = {}
    for name, items in table.items():
        choose(f"set of prompts in {file}", name, SETS)
        for item in items if isinstance(items, list) else [None]:
            one = {"text": item} if isinstance(item, str) else item
            if (
                not isinstance(one, dict)
                or not isinstance(one.get("text"), str)
                or not all(map(_is_path, one.values()))
            ):
                raise InputError(f"{file}: the {name} prompts are {items!r}: expected a list of texts")
            own = {
                choose(f"key of a prompt in {file}", k.replace("-", "_"), INPUTS): one[k] for k in one if k != "text"
            }
            if own:
                paths[len(prompts)] = own
            digests = sorted((key, digest(opened(path, several=OPTIONS[key].several))) for key, path in own.items())
            prompts.append(Prompt(one["text"], name, tuple(digests)))
    return checked(prompts, file), paths
