"""Time a clip from prompt to file: zs2 against diffusers with TMA as an attention processor, and Text2Video-Zero.

    python benchmarks/clip.py                          all of these
    python benchmarks/clip.py --models default
    python benchmarks/clip.py --models sd15            of SD 1.5's size, in few and small steps
    python benchmarks/clip.py --models sd15-bfloat16   in bfloat16, two frames of 256²; if the device has it
    python benchmarks/clip.py --models sd15-fast       --fast against diffusers' 50 steps: one frame of 64²

The ways to make a clip take turns. Each clip is made by a process of its own, and timed from the start of the process,
Python and imports included, to the GIF on disk. Memory is the highest resident size of the process by then. `In
process` is the time of a clip of the default checkpoint when everything is loaded and warm: one process loads all ways,
and they take turns in it, three times as often.

zs2 is `python -m zs2.sample`, which also writes a contact sheet and the settings (in process it is the library, which
writes no sheet). All settings are the same, except for the steps of `--fast`. Each way draws its own noises; no time
depends on their values. At SD 1.5's size, all clips of zs2 but the first find the SHA-256 of the weights in the cache.
The model of Stable Diffusion 1.5's size has random weights, so its pictures show nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import (
    add_json,
    alone,
    bar,
    highest_resident_size,
    machine,
    native,
    ratio,
    save,
    sentence,
    since_begun,
    spread,
    timed,
    turns,
)

from zs2.checkpoints.hub import DEFAULT_MODEL

DEFAULT = Path(__file__).resolve().parent.parent / DEFAULT_MODEL
PROMPT = "panda face on a sky blue background"
MU, LAM = 0.98, 0.1
UNET, VAE = (json.loads((DEFAULT / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", "vae"))
SIDE = UNET["sample_size"] * 2 ** (len(VAE["block_out_channels"]) - 1)  # of the default checkpoint's pictures
PEERS = {"zs2": "diffusers tma", "zs2 text2video-zero": "diffusers text2video-zero"}


Make = Callable[[], None]  # makes a clip and writes its file


class Case(NamedTuple):
    """A clip, the ways to make it, and the bars: the speed relative to the peers in a whole process, and in process
    (None if that is not measured)."""

    frames: int
    steps: int
    size: int
    guidance: float
    ways: tuple[str, ...]
    whole: float
    within: float | None
    dtype: str = "float32"


BOTH = (*PEERS, *PEERS.values())
WARM = 3  # clips in process for each clip in a process of its own
FASTER = 3.0  # the bar for the speed of --fast relative to diffusers at SD 1.5's size
CASES = {
    "default": Case(8, 25, SIDE, 5.0, (*BOTH, "zs2 fast"), 2.0, 1.1),
    "sd15": Case(2, 3, 64, 7.5, BOTH, 0.98, None),
    "sd15-bfloat16": Case(2, 6, 256, 7.5, BOTH, 1.1, None, "bfloat16"),
    "sd15-fast": Case(1, 50, 64, 7.5, ("zs2 fast", "diffusers tma"), FASTER, None),
}


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--models", nargs="+", choices=CASES, default=CASES)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--dtype", help="default: that of each model")
    add_json(p)
    p.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    p.add_argument("--within", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.child:
        way, name, folder = args.child
        child(way, CASES[name], Path(folder), args.dtype)
        return
    if args.within:
        name, folder = args.within
        within(CASES[name], Path(folder), args.dtype, args.rounds)
        return
    hardware, figures = machine(), {}
    print(sentence(hardware))
    with tempfile.TemporaryDirectory() as scratch:
        if any(name != "default" for name in args.models):
            from sd15 import write_model

            write_model(Path(scratch), single=False)
        for name in args.models:
            case, dtype = CASES[name], args.dtype or CASES[name].dtype
            if not args.dtype and not native(getattr(torch, dtype), torch.device("cpu")):
                print(f"\n{name} left out: this device has no arithmetic in {dtype} (--dtype {dtype} times it anyway)")
                continue
            folder = DEFAULT if name == "default" else Path(scratch, "folder")
            runs: dict[str, list[list[float]]] = {way: [] for way in case.ways}
            for _, way in turns(case.ways, args.rounds):
                runs[way].append(alone(__file__, "--child", way, name, str(folder), "--dtype", dtype))
            warm = {}
            if case.within is not None:
                more = ["--dtype", dtype, "--rounds", str(WARM * args.rounds)]
                warm = alone(__file__, "--within", name, str(folder), *more)
            report(name, case, runs, warm, dtype)
            figures[name] = {"case": case._asdict() | {"dtype": dtype}, "runs": runs, "in process": warm}
    save(args.json, hardware, columns=["whole", "memory GB"], cases=figures)


def child(way: str, case: Case, folder: Path, dtype: str) -> None:
    """Make the clip in one way, in a new process. Print the time and the memory."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        file = Path(scratch, "clip.gif")
        by(way)(way, case, folder, dtype, file)
        cost = since_begun(), highest_resident_size()
        assert file.stat().st_size
    print(json.dumps(cost))


def within(case: Case, folder: Path, dtype: str, rounds: int) -> None:
    """Make the clip in all ways in turn, loaded and warm. Print the times."""
    times: dict[str, list[float]] = {way: [] for way in case.ways}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        file = Path(scratch, "clip.gif")
        makes = {way: by(way)(way, case, folder, dtype, file)() for way in case.ways}
        for _, way in turns(case.ways, rounds):
            times[way].append(timed(makes[way], torch.device("cpu")))
    print(json.dumps(times))


def by(way: str) -> Callable[[str, Case, Path, str, Path], Callable[[], Make]]:
    """The library that makes a clip this way."""
    return zs2 if way.startswith("zs2") else diffusers


def zs2(way: str, case: Case, folder: Path, dtype: str, file: Path) -> Callable[[], Make]:
    """Make a clip by the command. Returns: a function that loads the model, warms up, and returns one that makes a clip
    by the library."""
    from zs2.sample import main as sample

    method = {"noise": "text2video-zero", "attn": "cfa"} if way.endswith("zero") else {"mu": MU, "lam": LAM}
    request: dict[str, Any] = {"frames": case.frames, "guidance": case.guidance}
    request |= {} if way.endswith("fast") else {"steps": case.steps}
    words = [f"--{name}={value}" for name, value in {**method, **request, "dtype": dtype}.items()]
    words += ["--fast"] * way.endswith("fast")
    sizes = [f"--size={case.size}x{case.size}", f"--model={folder}", f"--out={file}", "--overwrite"]
    with contextlib.redirect_stderr(io.StringIO()) as messages:
        status = sample([PROMPT, *words, *sizes])
    assert status == 0, messages.getvalue()

    from zs2 import FAST, ZS2

    options = request | (FAST if way.endswith("fast") else {}) | {"height": case.size, "width": case.size}

    def load() -> Make:
        model = ZS2.from_pretrained(folder, dtype=dtype, **method)
        model(PROMPT, **options | {"steps": 3})
        return lambda: model(PROMPT, **options).save(file, overwrite=True)

    return load


def diffusers(way: str, case: Case, folder: Path, dtype: str, file: Path) -> Callable[[], Make]:
    """Make a clip by diffusers' pipelines. Returns: a function that returns one that makes another clip."""
    import peers

    pipe = peers.pipeline(folder, torch_dtype=getattr(torch, dtype))
    channels, side = pipe.unet.config.in_channels, case.size // pipe.vae_scale_factor
    generator = torch.Generator().manual_seed(0)
    common: dict[str, Any] = {"steps": case.steps, "guidance": case.guidance}
    if way.endswith("zero"):
        # as in zs2.method.renoise_at, which is not imported: the peer's time would include the import
        t1 = min(round(case.steps * 47 / 50), case.steps - 1)
        common |= {"frames": case.frames, "renoise": (min(round(case.steps * 44 / 50), t1 - 1), t1)}
        zero = peers.text2video_zero(pipe)

    def make() -> None:
        first = torch.randn(1 if way.endswith("zero") else case.frames, channels, side, side, generator=generator)
        if way.endswith("zero"):
            pictures = peers.zero_clip(zero, PROMPT, first, **common)
        else:
            pictures = peers.momentum_clip(pipe, PROMPT, first, mu=MU, **common)
        peers.write_gif(pictures, file, 8)

    make()
    return lambda: make


def report(name: str, case: Case, runs: dict[str, list[list[float]]], warm: dict[str, list[float]], dtype: str) -> None:
    """Print the table of a model, and whether it meets the bars."""
    rounds = len(next(iter(runs.values())))
    clip = f"{case.frames} frames of {case.size}², {case.steps} steps, guidance {case.guidance:g}, {dtype}"
    print(f"\n{name}: {clip}; median of {rounds}{f', in process of {WARM * rounds}' if warm else ''} (least … most)")
    print(f"{'':<26} {'whole process, s':<22} {'in process, s':<22} memory, GB")
    whole = {way: [time for time, _ in found] for way, found in runs.items()}
    memory = {way: [most for _, most in found] for way, found in runs.items()}
    for way in runs:
        print(f"{way:<26} {spread(whole[way], 2):<22} {spread(warm[way], 2) if warm else '':<22} ", end="")
        print(spread(memory[way], 2))
    for way, peer in [*PEERS.items(), ("zs2 fast", "diffusers tma")]:
        if way not in runs or peer not in runs:
            continue
        found = [("whole process", case.whole, ratio(whole[peer], whole[way]))]
        if warm:
            found.append(("in process", case.within, ratio(warm[peer], warm[way])))
        print(f"{way} against {peer}: {', '.join(f'{what} {times}' for what, _, times in found)} times as fast")
        for what, limit, times in found:
            if way in PEERS or name == "sd15-fast":
                print(bar(what, times.median, limit, least=True))
        print(bar("memory over the peer's", ratio(memory[way], memory[peer]).median, 1.0, least=False))


if __name__ == "__main__":
    main()
