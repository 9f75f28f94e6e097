"""`python -m zs2.sample`: prompts to clips."""

from __future__ import annotations

import argparse
import io
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from zs2 import __version__
from zs2.config import ATTENTION_KINDS, DEFAULT_MODEL, DTYPES, LAM, MU, NOISE_KINDS, SEED_MAX
from zs2.errors import InputError
from zs2.request import Request

if TYPE_CHECKING:
    from zs2.pipeline import ZS2

EXAMPLE = "panda face on a sky blue background"  # of the default checkpoint
VARIANT: tuple[str, ...] = ("attn", "mu", "noise", "lam", "alpha")
REQUEST = tuple(field.name for field in fields(Request))
REPLAY = (
    "replay",
    "model",
    "prediction",
    "lora",
    "device",
    "latents",
    "out",
    "sheet",
)  # what --replay can be given with
MOST_CLIPS = 100_000


class Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        say(f"error: {message}")
        sys.exit(2)


def parser() -> Parser:
    """The command line. What is not given is not in the result, so that an option without effect can be told."""
    p = Parser(
        prog="python -m zs2.sample",
        description="Make a video clip from a text prompt with an image diffusion model, without training (ZS²).",
        epilog="""examples:
  python -m zs2.sample "red apple on a sky blue background" --lam 0.15 --out apple.gif
  python -m zs2.sample --attn sa --noise iid          every frame on its own: the baseline
  python -m zs2.sample --seed 0..3 --out clips/c.webp  four clips: clips/c-s0.webp …
  python -m zs2.sample --replay apple.json --out again.gif""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    p.add_argument("prompt", nargs="?", help=f"what to show (default, for the default model only: {EXAMPLE!r})")
    p.add_argument("--version", action="version", version=f"zs2 {__version__}")

    g = p.add_argument_group("model")
    g.add_argument(
        "--model",
        metavar="PATH",
        help="a folder in the diffusers layout, a .safetensors file of SD 1.x or 2.x in the original layout, or a "
        f"model on the hub: owner/name[@revision], or a short name: python -m zs2.models (default {DEFAULT_MODEL})",
    )
    g.add_argument("--lora", action="append", metavar="FILE[:SCALE]", help="merge a LoRA; may be given several times")
    g.add_argument("--prediction", metavar="P", help="epsilon or v: what a single file of SD 2 does not say of itself")
    g.add_argument("--device", help="cpu, cuda, cuda:1, mps … (default: the first there is of cuda, mps, cpu)")
    g.add_argument("--dtype", metavar="DTYPE", help=f"{', '.join(DTYPES)} (default float32)")

    g = p.add_argument_group("method: what the ablations switch")
    g.add_argument("--attn", metavar="KIND", help=f"attention over frames: {', '.join(ATTENTION_KINDS)} (default tma)")
    g.add_argument("--mu", type=float, help=f"momentum of tma, from 0 (= sa) to 1 (= cfa) (default {MU})")
    g.add_argument("--noise", metavar="KIND", help=f"initial noises: {', '.join(NOISE_KINDS)} (default dnm)")
    g.add_argument("--lam", type=float, help=f"λ of dnm, from 0 (still) to √e (independent frames) (default {LAM})")
    g.add_argument("--alpha", type=float, help="a of mixed (default 1) and progressive (default 2) noise")

    g = p.add_argument_group("sampling")
    g.add_argument("--negative-prompt", metavar="TEXT", help="what to lead away from (default: nothing)")
    g.add_argument("--frames", type=int, metavar="N", help="default 8")
    g.add_argument("--steps", type=int, metavar="N", help="DDIM steps (default 50)")
    g.add_argument(
        "--guidance", type=float, metavar="G", help="u + G·(c − u); 1: only the prompt, at half the work (default 7.5)"
    )
    g.add_argument(
        "--seed", type=seeds, metavar="S", help="a number, a range 0..3 or a list 1,5,7: a clip each (default 0)"
    )
    g.add_argument("--size", type=size, metavar="WxH", help="pixels (default: what the model was trained at)")
    g.add_argument(
        "--latents", metavar="FILE", help="safetensors with `latents`, float32 (frames, 4, h, w): the initial noise"
    )

    g = p.add_argument_group("many prompts")
    g.add_argument("--prompts", metavar="FILE", help="one clip for each line")
    g.add_argument("--travel", metavar="FILE", help="one clip, one prompt a frame: a line each, the last repeats")

    g = p.add_argument_group("output")
    g.add_argument(
        "--out",
        metavar="FILE",
        help="by its ending: .gif, .webp (lossless), .png or .apng (animated), .mp4 (with zs2[video]); none: a folder "
        "of PNG files (default: the next free out/00001.gif). A JSON with all settings is put beside it",
    )
    g.add_argument("--fps", type=int, metavar="N", help="frames a second (default 8)")
    g.add_argument("--no-sheet", dest="sheet", action="store_false", help="no contact sheet beside the clip")
    g.add_argument(
        "--replay", metavar="FILE", help="make the clip of this JSON (or clip) again, bit for bit on the same machine"
    )
    return p


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
    twice = [seed for seed, count in Counter(chosen).items() if count > 1]
    if twice:
        raise argparse.ArgumentTypeError(f"{text!r} has {twice[0]} twice: expected each seed once")
    return chosen


def size(text: str) -> tuple[int, int]:
    """`WxH` to (width, height)."""
    match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: expected WIDTHxHEIGHT, such as 512x512")
    return int(match[1]), int(match[2])


def lines(file: str) -> list[str]:
    """The lines of a text file that are not blank. Raises: InputError if there are none."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read as a text of prompts ({error})") from error
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise InputError(f"{file}: no prompt in it: expected one a line")
    return found


def prompts(given: dict[str, Any]) -> list[str | list[str]]:
    """The prompt of each clip. Raises: InputError if there are several sources, or none with a model of one's own."""
    sources = [name for name in ("prompt", "prompts", "travel") if name in given]
    if len(sources) > 1:
        raise InputError(f"{' and '.join(sources)} are given: expected one of a prompt, --prompts and --travel")
    if "prompts" in given:
        return [*lines(given["prompts"])]
    if "travel" in given:
        return [lines(given["travel"])]
    if "prompt" not in given and Path(given.get("model", DEFAULT_MODEL)) != Path(DEFAULT_MODEL):
        raise InputError("no prompt: give one (only the default model has an example)")
    return [given.get("prompt", EXAMPLE)]


def requests(given: dict[str, Any]) -> Iterator[tuple[str, Request]]:
    """Every clip to be made: what to add to the name of its file, and its request."""
    common = {name: given[name] for name in REQUEST if name in given and name not in ("prompt", "seed", "latents")}
    if "size" in given:
        common["width"], common["height"] = given["size"]
    if "latents" in given:
        common["latents"] = latents(given["latents"])
        common.setdefault("frames", len(common["latents"]))
    texts, numbers = prompts(given), given.get("seed", [0])
    for i, text in enumerate(texts, 1):
        for seed in numbers:
            prompt_mark = f"-p{i:0{len(str(len(texts)))}}" if len(texts) > 1 else ""
            seed_mark = f"-s{seed}" if len(numbers) > 1 else ""
            yield prompt_mark + seed_mark, Request(text, seed=seed, **common)


def latents(file: str) -> Any:
    """The tensor `latents` of a safetensors file. Raises: InputError if there is none."""
    from zs2.weights import read_tensors

    path = Path(file)
    if not path.is_file():
        raise InputError(f"{file}: no such file of latents")
    tensors = read_tensors([path])
    if "latents" not in tensors or tensors["latents"].ndim != 4:
        raise InputError(
            f"{file}: expected a tensor `latents` (frames, 4, h, w), got "
            f"{ {name: tuple(tensor.shape) for name, tensor in tensors.items()} }"
        )
    return tensors["latents"]


def outputs(given: dict[str, Any], marks: Sequence[str], fps: int) -> list[Path]:
    """The file of each clip, checked before anything is sampled."""
    from zs2.video import check_output

    if "out" in given:
        base = Path(given["out"])
    else:
        taken = [int(m[0]) for p in Path("out").glob("*") if (m := re.match(r"\d{5,9}", p.name, re.ASCII))]
        base = Path("out") / f"{max(taken, default=0) + 1:05}.gif"
    if not base.name:
        raise InputError(f"--out {given['out']!r} names no file: expected one such as clip.gif")
    return [check_output(base.with_name(base.stem + mark + base.suffix) if mark else base, fps) for mark in marks]


def replayed(file: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options that made a clip, from its settings; what --replay can be given with wins."""
    from zs2.video import read_settings

    others = [name for name in given if name not in REPLAY]
    if others:
        warnings.warn(f"--replay takes all settings from its file: {', '.join(others)} has no effect", stacklevel=2)
    made = read_settings(Path(file))
    try:
        options = {name: made[name] for name in (*VARIANT, *REQUEST, "fps", "dtype", "device")}
        options["made"] = {name: made[name] for name in ("weights", "lora", "versions", "latents")}
    except KeyError as error:
        raise InputError(f"{file}: these are not the settings of a clip of zs2: {error} is missing") from error
    for name in needed(made):
        if made[name] is None:
            raise InputError(f"{file}: {name} is null, but has an effect with the other settings: expected a value")
    for name in ("mu", "lam", "alpha"):
        if not isinstance(made[name], int | float | None):
            raise InputError(f"{file}: {name} is {made[name]!r}: expected a number")
    if options.pop("latents") is not None and "latents" not in given:
        raise InputError(f"{file}: this clip started from given latents: give the same --latents")
    options = {name: value for name, value in options.items() if value is not None}
    options["seed"] = [options.get("seed", 0)]
    options["size"] = (options.pop("width"), options.pop("height"))
    return options | {name: given[name] for name in REPLAY if name in given}


def needed(made: dict[str, Any]) -> list[str]:
    """The settings that decide a clip of this variant: what has no effect is null."""
    from zs2.models.temporal import uses_mu
    from zs2.noise import ALPHA, uses_lam

    names = ["prompt", "negative_prompt", "frames", "steps", "guidance", "width", "height", "fps"]
    names += ["attn", "dtype", "device", "weights", "versions"]
    names += ["mu"] * uses_mu(str(made["attn"]))
    if made["latents"] is None:
        names += ["seed", "noise"] + ["lam"] * uses_lam(str(made["noise"])) + ["alpha"] * (str(made["noise"]) in ALPHA)
    return names


def warn_without_effect(given: dict[str, Any], paths: Sequence[Path]) -> None:
    """Warn of options that change nothing, given the others. The library warns of those of a variant."""
    if "latents" in given:
        unused = [name for name in VARIANT[2:] if name in given]  # of the seed, the library warns
        if unused:
            warnings.warn(f"{', '.join(unused)}: no effect where latents are given", stacklevel=2)
    elif given.get("frames") == 1:
        unused = [name for name in VARIANT if name in given]
        if unused:
            warnings.warn(f"{', '.join(unused)}: no effect on a single frame", stacklevel=2)
    if "fps" in given and not paths[0].suffix:
        warnings.warn("fps: no effect on a folder of PNG files", stacklevel=2)


def check_replay(model: ZS2, made: dict[str, Any], request: Request, fps: int) -> None:
    """Raise InputError if a replay has other weights or latents; warn of other versions."""
    now = model.settings(request, fps)
    if made["weights"] != now["weights"]:
        parts = [part for part, digest in now["weights"].items() if dict(made["weights"]).get(part) != digest]
        raise InputError(f"the clip was made with other weights ({', '.join(parts)}): give its --model")
    if made["lora"] != now["lora"]:
        raise InputError(f"the clip was made with LoRA {made['lora']}, not {now['lora']}: give the same --lora")
    if made["latents"] != now["latents"]:
        raise InputError("the clip was made from other latents: give the same --latents")
    if made["versions"] != now["versions"]:
        warnings.warn(f"made with {made['versions']}, now {now['versions']}: the clip may differ", stacklevel=2)


def run(given: dict[str, Any]) -> None:
    """Make all the clips. What is wrong with the options is said before the model is loaded."""
    if "replay" in given:
        given = replayed(given["replay"], given)
    jobs = list(requests(given))
    fps = given.get("fps", 8)
    paths = outputs(given, [mark for mark, _ in jobs], fps)
    if "made" not in given:
        warn_without_effect(given, paths)

    from zs2.pipeline import ZS2
    from zs2.progress import progress
    from zs2.video import Clip

    options = {name: given[name] for name in (*VARIANT, "device", "dtype", "prediction", "lora") if name in given}
    model = ZS2.from_pretrained(given.get("model", DEFAULT_MODEL), **options)
    for _, request in jobs:
        model.check(request)
        if "made" in given:
            check_replay(model, given["made"], request, fps)
    for number, ((_, request), path) in enumerate(zip(jobs, paths, strict=True), 1):
        label = "sampling" if len(jobs) == 1 else f"clip {number} of {len(jobs)}"
        for step in progress(model.sample(request), request.steps, label):
            final = step.latents
        clip = Clip(model.decode(final), fps, model.settings(request, fps))
        for written in clip.save(path, sheet=given.get("sheet", True)):
            print(written)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0; 1 if sampling failed; 2 for what the user gave; 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # λ on a terminal that has none
    given = vars(parser().parse_args(argv))
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            run(given)
        except InputError as error:
            say(f"error: {error}")
            return 2
        except (FloatingPointError, OSError) as error:
            say(f"error: {error}")
            return 1
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            say("error: out of memory: try fewer --frames, a smaller --size, or half precision (--dtype)")
            return 1
        except KeyboardInterrupt:
            say("stopped: what was finished before is kept")
            return 130
    return 0


def say(text: str) -> None:
    """One line on standard error, whatever a user's text holds."""
    line = " ".join(text.split())
    print("zs2:", "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
