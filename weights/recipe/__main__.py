"""Make the default checkpoint, and measure it.

    python -m weights.recipe train                     # out/recipe/checkpoint, in hours on two cores
    python -m weights.recipe train --quick             # a small one in minutes, to see that everything works
    python -m weights.recipe edges                     # a ControlNet for the finished checkpoint, in an hour
    python -m weights.recipe edit                      # an editing UNet that starts from the checkpoint's, in an hour
    python -m weights.recipe judge                     # train the classifier that judges the pictures
    python -m weights.recipe measure weights/emoji128   # the share of prompts whose picture shows the right thing
    python -m weights.recipe measure out/recipe-edges/emoji128-edges    # whether it does what it is for
    python -m weights.recipe sheet weights/emoji128     # scenes, their reconstructions, and samples: out/sheet.png
    python -m weights.recipe looks weights/emoji128     # whether attention keeps a look that the prompt leaves open

You can stop a training at any moment: started again, it goes on where it was. `--minutes` stops it by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from weights.recipe import (
    autoencoder,
    bpe,
    contrastive,
    curves,
    denoiser,
    edges,
    edits,
    judge,
    layout,
    looks,
    measure,
    measure_guided,
    pictures,
)
from weights.recipe.base import Base
from weights.recipe.settings import EDGES, EDIT, FULL, QUICK, QUICK_EDGES, QUICK_EDIT, Guided, Settings
from weights.recipe.training import Clock, OutOfTime
from zs2.checkpoints.hub import DEFAULT_MODEL, is_hub_id
from zs2.checkpoints.locate import local_path, locate
from zs2.checkpoints.own_settings import OwnSettings
from zs2.errors import InputError, whole
from zs2.method import SEED_MAX
from zs2.system.devices import choose_device
from zs2.system.own_files import check_own
from zs2.video.metadata import PNG_MARK, png_text

FETCHED = Path("out/fetched")
GUIDED = {"edges": (edges.learn, EDGES, QUICK_EDGES), "edit": (edits.learn, EDIT, QUICK_EDIT)}
WORK = {"train": "out/recipe", "judge": "out/recipe", "edges": "out/recipe-edges", "edit": "out/recipe-edit"}
TRAININGS = tuple(WORK)


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns: the exit status, which is 0, 1 for an error, or 3 if the time was over before the end."""
    p = argparse.ArgumentParser(
        prog="python -m weights.recipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = p.add_subparsers(dest="command", required=True)
    for name, help_ in (
        ("train", "tokenizer, CLIP, VAE and UNet, in this order"),
        ("edges", "a ControlNet that reads the outlines of things"),
        ("edit", "a UNet that edits by instructions"),
        ("judge", "the classifier of `measure`"),
        ("measure", "judge checkpoints"),
        ("sheet", "scenes of twelve things, what the VAE makes of them, and samples for the same prompts"),
        ("pack", "write the pictures of things.json into one file, for a machine that can fetch nothing"),
        ("join", "undo --shards"),
        ("looks", "how far the colours of later frames are from frame 0's, for each μ"),
    ):
        q = commands.add_parser(name, help=help_)
        if name in TRAININGS:
            q.add_argument("--quick", action="store_true", help="a few things, small parts, few steps")
            q.add_argument("--minutes", type=float, metavar="M", help="stop after M minutes, to go on later")
            q.add_argument("--work", type=Path, metavar="DIR", help=f"default: {WORK[name]}, or {WORK[name]}-quick")
            q.add_argument("--device", default="cpu", help="default: cpu; cuda takes minutes instead of hours")
        if name == "train":
            q.add_argument(
                "--shards", action="store_true", help="end with files of at most 15 MiB, in diffusers' shards"
            )
        if name == "join":
            q.add_argument("checkpoint", type=Path, help="a folder of --shards, whose parts then have one file each")
        if name == "pack":
            q.add_argument("file", type=Path, help="0.6 MB, for --pictures")
        if name in GUIDED:
            q.add_argument(
                "checkpoint",
                nargs="?",
                help=f"the folder of the finished checkpoint (default {DEFAULT_MODEL})",
            )
        if name in (*TRAININGS, "measure", "sheet"):
            q.add_argument(
                "--pictures",
                type=Path,
                metavar="PATH",
                help="a folder of your own pictures, NAME.png each, with transparency, or a file of `pack`",
            )
        if name == "measure":
            q.add_argument("checkpoint", nargs="+", help="folders, or any other models that zs2 loads")
            q.add_argument(
                "--base", metavar="MODEL", help="of ControlNets: what they guide (default: NAME of NAME-edges)"
            )
            q.add_argument("--things", type=int, default=49, metavar="N", help="first N of things.json (default 49)")
            q.add_argument("--seed", type=int, default=0, metavar="S", help="the seed of all pictures (default 0)")
            q.add_argument(
                "--judge", type=Path, default=judge.FILE, metavar="FILE", help="default: the judge of the recipe"
            )
            q.add_argument(
                "--out", type=Path, metavar="FILE", help="write the figures as JSON, and pictures as FILE-NAME.png"
            )
            q.add_argument(
                "--csv", type=Path, metavar="FILE", help="write the figures into a CSV, beside those of others"
            )
            q.add_argument(
                "--list",
                action="store_true",
                help=f"zs2.json lists those things that more than {100 * measure.OFTEN:.0f} %% of their pictures show",
            )
        if name == "sheet":
            q.add_argument("checkpoint", help="a folder, or any other model that zs2 loads")
            q.add_argument("--seed", type=int, default=0, metavar="S", help="the seed of the samples (default 0)")
            q.add_argument(
                "--out", type=Path, metavar="FILE", default=Path("out/sheet.png"), help="default: %(default)s"
            )
        if name == "looks":
            q.add_argument("checkpoint", help="a folder, or any other model that zs2 loads")
            q.add_argument("--things", type=int, default=16, metavar="N", help="first N of things.json (default 16)")
            q.add_argument("--seeds", type=int, default=2, metavar="N", help="clips of each thing (default 2)")
            q.add_argument("--frames", type=int, default=4, metavar="N", help="frames of a clip (default 4)")
    args = p.parse_args(argv)
    try:
        run(args)
    except OutOfTime:
        print("the time is over, and the state is kept: start it again to go on", file=sys.stderr)
        return 3
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """Run a command. Raises: OutOfTime; InputError; FloatingPointError"""
    if args.command == "looks":
        names = pictures.things(whole("things", args.things, 2))
        print_looks(args.checkpoint, names, whole("seeds", args.seeds, 1), whole("frames", args.frames, 2))
        return
    if args.command == "join":
        layout.shard(args.checkpoint, sys.maxsize)
        return
    if args.command == "pack":
        pictures.pack(pictures.things(), FETCHED, args.file)
        return
    if args.command == "measure":
        classifier = judge.Judge.load(args.judge)
        load = partial(pictures.load, classifier.things, FETCHED, args.pictures)
        things, seed = whole("things", args.things, 1, len(classifier.things)), whole("seed", args.seed, 0, SEED_MAX)
        if args.out is not None or args.csv is not None:
            check_names(args.checkpoint)
        if args.out is not None:
            drawn = [(picture(args.out, checkpoint), (PNG_MARK,)) for checkpoint in args.checkpoint]
            check_own([(args.out, ('{\n  "judge": {',)), *drawn])
            args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.csv is not None:
            check_own([(args.csv, (",".join(measure.CSV_HEAD),))])
            args.csv.parent.mkdir(parents=True, exist_ok=True)
        folders = {checkpoint: place(checkpoint) for checkpoint in args.checkpoint}
        if args.base is not None and not any(map(measure_guided.is_controlnet, folders.values())):
            raise InputError("--base is of ControlNets, and there is none")
        if args.list:
            check_listing(folders, things, len(classifier.things))
        figures = report(args.checkpoint, classifier, load, things, seed, args.out, args.base, args.list)
        for checkpoint in args.checkpoint if args.csv is not None else ():
            measure.add_to_csv(args.csv, Path(checkpoint).name, things, seed, figures[checkpoint])
        for checkpoint, folder in folders.items() if args.list else ():
            often = measure.often(figures[checkpoint]["by thing"])
            names = [name for name in classifier.things if name in often]
            layout.write(folder / "zs2.json", layout.relisted(folder / "zs2.json", names))
        return
    if args.command == "sheet":
        names = names_of(args.pictures, None)
        check_own([(args.out, (PNG_MARK,))])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        load = partial(pictures.load, names, FETCHED, args.pictures)
        save_sheet(args.out, measure.sheet(args.checkpoint, load, names, whole("seed", args.seed, 0, SEED_MAX)))
        return
    work, device = args.work or Path(f"{WORK[args.command]}{'-quick' * args.quick}"), choose_device(args.device)
    clock = Clock(None if args.minutes is None else 60 * args.minutes)
    if args.command in GUIDED:
        checkpoint = place(args.checkpoint or DEFAULT_MODEL)
        known = OwnSettings.read(checkpoint).things or tuple(pictures.things())
        _, full, quick = GUIDED[args.command]
        names = [*known[: QUICK.things if args.quick else None]]
        guide(args.command, checkpoint, names, args.pictures, quick if args.quick else full, work, clock, device)
        return
    settings = QUICK if args.quick else FULL
    names = names_of(args.pictures, settings.things)
    loaded = pictures.load(names, FETCHED, args.pictures, settings.size)
    if args.command == "train":
        train(names, loaded, settings, work, clock, device)
        if args.shards:
            layout.shard(work / "checkpoint", 15 << 20)
        return
    begin(work, settings, names, loaded)
    file = work / "judge.safetensors"
    judge.learn(names, loaded.to(device), settings, work, clock, file)
    print(f"{file}: right of held-out scenes: {json.dumps(judge.accuracy(judge.Judge.load(file), loaded, 0))}")


def guide(
    command: str,
    checkpoint: Path,
    names: list[str],
    own: Path | None,
    settings: Guided,
    work: Path,
    clock: Clock,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Path:
    """Train a model that goes with a checkpoint. own: pictures, as `pictures.load` has them. Returns: its folder.

    Raises: InputError if a part of the checkpoint is missing.
    """
    base = Base(checkpoint, device)
    loaded = pictures.load(names, FETCHED, own, base.size)
    begin(work, settings, names, loaded, {"checkpoint": base.digest})
    out = work / f"{checkpoint.resolve().name}-{command}"
    GUIDED[command][0](names, loaded.to(device), settings, base, out, work, clock)
    taken = sum(line["seconds"] for line in curves.lines(work, command)[-1:])
    print(f"{out}: trained in {taken / 60:.0f} minutes")
    return out


def begin(
    work: Path,
    settings: Settings | Guided,
    names: list[str],
    loaded: Tensor,
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Record the inputs of a training in its work folder. Raises: InputError if it was begun with other inputs."""
    file = work / "settings.json"
    inputs = {"settings": repr(settings), "things": names, "pictures": sha256(loaded.numpy().tobytes()).hexdigest()}
    inputs |= more
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != inputs:
        other = "settings or pictures, or for another checkpoint" if more else "settings or pictures"
        raise InputError(f"{work} was begun with other {other}: remove it, or give another --work")
    layout.write(file, inputs)


def train(
    names: list[str],
    loaded: Tensor,
    settings: Settings,
    work: Path,
    clock: Clock,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> None:
    """Train every part that does not exist yet. A part that is there is kept, whoever made it."""
    begin(work, settings, names, loaded)
    loaded = loaded.to(device)
    out = work / "checkpoint"
    tokenizer = bpe.learn(names, out)
    try:
        if not layout.is_there(out, "text_encoder"):
            contrastive.learn(names, loaded, tokenizer, settings, out, work, clock)
        if not layout.is_there(out, "vae"):
            autoencoder.learn(loaded, settings, out, work, clock)
        if not layout.is_there(out, "unet"):
            denoiser.learn(names, loaded, settings, out, work, clock)
    finally:
        curves.draw(work)
    layout.write(out / "zs2.json", layout.own_settings(names[: settings.unet[-1].things]))
    print(f"{out}: trained in {sum(curves.seconds(work).values()) / 60:.0f} minutes: {curves.summary(work)}")


def print_looks(checkpoint: str, names: list[str], seeds: int, frames: int) -> None:
    """Print a table with one row for each μ."""
    rows = looks.distances(checkpoint, names, range(seeds), frames)
    print(f"{checkpoint}: colours of frames 1 to {frames - 1} against frame 0's, in CIELAB")
    intervals = "; 95 % intervals over prompts" * any(
        len(row[what]) > 1 for row in rows for what in row if what != "mu"
    )
    print(f"{len(names)} prompts that name the thing alone, {seeds} seeds; i.i.d. noise, TMA{intervals}")
    for row in rows:
        both = "  ".join(f"{what} {row[what][0]:5.1f}{ends(row[what])}" for what in row if what != "mu")
        print(f"  mu {row['mu']:4}  {both}")


def ends(figures: list[float], factor: float = 1) -> str:
    """The interval of a value, which follows it; none where it has none."""
    return f"  [{', '.join(f'{factor * end:.1f}' for end in figures[1:])}]" if len(figures) > 1 else ""


def names_of(own: Path | None, count: int | None) -> list[str]:
    """The names of the things: those of a folder of own pictures, or the first `count` of things.json (None: all)."""
    if own is not None and not own.is_file():
        return sorted(file.stem for file in own.glob("*.png"))
    return pictures.things(count)


def place(checkpoint: str) -> Path:
    """The folder of a checkpoint, by its path or its short name. Raises: InputError if there is none."""
    found = local_path(checkpoint)
    if found is None and not is_hub_id(checkpoint):
        locate(checkpoint, "float32")  # says so
    return found or Path(checkpoint)


def check_listing(folders: Mapping[str, Path], things: int, known: int) -> None:
    """Raise InputError if `--list` would write a wrong list, or write it where no checkpoint is."""
    if things < known:
        raise InputError(f"--list with --things {things}: it would leave out the others: give --things {known}")
    for checkpoint, folder in folders.items():
        if not (folder / "model_index.json").is_file():
            raise InputError(f"--list: {checkpoint} is no folder of a whole checkpoint, and lists no things")


def check_names(checkpoints: list[str]) -> None:
    """Raise InputError if two checkpoints have one last name, by which a CSV and files of pictures tell them apart."""
    for name, count in Counter(Path(checkpoint).name for checkpoint in checkpoints).items():
        if count > 1:
            raise InputError(
                f"two checkpoints are called {name}, and figures in files are of the last name: give each once, or "
                "rename one"
            )


def picture(out: Path, checkpoint: str) -> Path:
    """The file of a checkpoint's pictures, beside that of the figures."""
    return out.with_name(f"{out.stem}-{Path(checkpoint).name}.png")


def report(
    checkpoints: list[str],
    classifier: judge.Judge,
    load: Callable[[int], Tensor],
    things: int,
    seed: int,
    out: Path | None,
    base: str | None = None,
    anew: bool = False,
) -> dict[str, Any]:
    """Print and return the figures of checkpoints, and write them to `out` if it is not None.

    load: pictures for a size. base: the model that a ControlNet guides; None: that of its name without `-edges`.
    anew: the lists of the checkpoints' things are about to be made from these figures.
    """
    loaded = load(classifier.size)
    known = judge.accuracy(classifier, loaded, seed=0)
    print("the judge on real scenes that it never saw: " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in known.items()))
    figures: dict[str, Any] = {"judge": known}
    names = classifier.things[:things]
    for checkpoint in checkpoints:
        folder = place(checkpoint)
        if measure.vae_alone(folder):
            found, shown = measure.of_vae(folder, load)
        elif measure_guided.is_controlnet(folder):
            guided = str(Path(checkpoint)).removesuffix("-edges") if base is None else base
            found, shown = measure_guided.of_edges(checkpoint, guided, classifier, load, names, seed)
        elif measure_guided.is_editing(folder):
            found, shown = measure_guided.of_edit(checkpoint, classifier, load, names, seed)
        else:
            found, shown = measure.figures(checkpoint, classifier, loaded[: len(names)], names, seed, anew)
        what = f"{found['prompts']} prompts" if "prompts" in found else "a VAE alone"
        print(f"\n{checkpoint}: {what}")
        figures[checkpoint] = found
        for key, value in found.items():
            if isinstance(value, list):
                print(f"  {key:40}{100 * value[0]:6.1f} %{ends(value, 100)}")
        if "psnr" in found:
            print(f"  {'VAE, PSNR':28}{found['psnr']:6.2f} dB\n  {'VAE, SSIM':28}{found['ssim']:7.3f}")
        if "psnr after" in found:
            print(f"  {'UNet, PSNR':28}{found['psnr after']:6.2f} dB\n  {'UNet, SSIM':28}{found['ssim after']:7.3f}")
        by_thing = found.get("by thing", {})
        if by_thing:
            often = len(measure.often(by_thing))
            print(
                f"  seen in more than {100 * measure.OFTEN:.0f} % of their pictures: {often} of {len(by_thing)} things"
            )
            worst = list(by_thing.items())[:8]
            print("  least often seen: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in worst))
        if out is not None:
            save_sheet(picture(out, checkpoint), shown)
            layout.write(out, figures)
    return figures


def save_sheet(file: Path, shown: NDArray[np.uint8]) -> None:
    """Write pictures, uint8 (SHOWN · rows, size, size, 3), as one PNG with SHOWN in a row."""
    side = shown.shape[1]
    grid = shown.reshape(-1, measure.SHOWN, side, side, 3).swapaxes(1, 2).reshape(-1, measure.SHOWN * side, 3)
    Image.fromarray(np.ascontiguousarray(grid)).save(file, pnginfo=png_text("{}"))


if __name__ == "__main__":
    sys.exit(main())
