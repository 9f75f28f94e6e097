"""Kill streams and studies at random moments, and check what is left: nothing finished is lost, nothing stays behind.

    python tests/kills.py MODEL FOLDER [--seed N] [--resumed N] [--plain N] [--grids N]

Each number is how many processes are killed, by SIGTERM, SIGKILL or SIGINT: streams that go on with --resume, streams
that can't, and studies. A line tells of each. The processes are forked from this one, which has torch imported, but has
not computed yet: so they start at once.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import zs2.ablate
import zs2.pipeline
import zs2.sample
import zs2.study.runner
from zs2.video.clip import read_settings
from zs2.video.formats import count_mp4
from zs2.video.leftovers import clear_leftovers

SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
STREAM = "rose --frames 16 --chunk 2 --steps 3 --size 16x16 --guidance 5 --lam 0.5 --stream --no-sheet"
GRID = "--noise dnm iid shared --lam 0.1 --frames 2 --size 16x16 --steps 1 --seeds 0..2"
LIMIT = 300  # seconds that no run takes
Main = Callable[[list[str]], int]


def start(main: Main, arguments: list[str], log: Path) -> int:
    """Run a command in a process of its own. Returns: its id."""
    process = os.fork()
    if process == 0:
        status = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            status = main(arguments)
        except KeyboardInterrupt:  # before the command began
            status = 128 + signal.SIGINT
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    return process


def ended(process: int, seconds: float) -> int | None:
    """The exit status of a process, or minus its signal; None if it lives after this time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


class Kills:
    """Runs commands in a folder and kills them.

    seed: of the moments and the signals.
    """

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        self.model, self.folder, self.chance = str(model.absolute()), folder, random.Random(seed)
        self.log = folder / "log"

    def run(self, main: Main, *arguments: str) -> float:
        """Run a command to its end. Returns: how many seconds it took."""
        began = time.monotonic()
        status = ended(start(main, [*arguments, "--model", self.model], self.log), LIMIT)
        assert status == 0, (status, self.log.read_text())
        return time.monotonic() - began

    def killed(
        self, main: Main, duration: float, *arguments: str, finished: Callable[[], int] = lambda: 0
    ) -> tuple[signal.Signals | None, int]:
        """Kill a command at a random moment.

        Returns: the signal, None if the command ended before that; and what `finished` counted before the signal.
        """
        number, count = self.chance.choice(SIGNALS), 0
        process = start(main, [*arguments, "--model", self.model], self.log)
        status = ended(process, self.chance.uniform(0, duration))
        if status is None:
            count = finished()
            os.kill(process, number)
            status = ended(process, LIMIT)
        # 0: it was at its end; minus SIGTERM: before the command began
        assert status in (0, -number, 128 + number), (number, status, self.log.read_text())
        print(f"{' '.join(arguments[:1])[:12]:<14}{number.name:<9}{status:>4}", flush=True)
        return (None if status == 0 else number), count


def pictures(folder: Path) -> list[np.ndarray]:
    """The frames of a folder of PNG files."""
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]


def are_first(clip: Path, whole: list[np.ndarray]) -> None:
    """Check that the frames of a clip are the first of another one (of an MP4, their number alone), and that its
    settings say how many."""
    count = read_settings(clip)["frames"]
    if clip.suffix:
        assert count_mp4(clip) == count, clip
    else:
        got = pictures(clip)
        assert len(got) == count, clip
        assert all(map(np.array_equal, got, whole)), clip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def left(folder: Path) -> list[Path]:
    """What an unfinished process left."""
    return [*folder.rglob(".zs2-*"), *folder.rglob("*.part")]


def frames_in(part: Path, name: str) -> int:
    """How many finished frames an unfinished stream has."""
    file = part / name
    return count_mp4(file) if file.is_file() else len([*file.glob("[0-9]*.png")])


def streams(kills: Kills, count: int, *, resumed: bool) -> None:
    """Kill streams, of PNG files and MP4 in turn."""
    stream: Main = zs2.sample.main
    whole, here = kills.folder / "whole", kills.folder / ("resumed" if resumed else "plain")
    line, duration = STREAM.split(), 0.0
    for name in ("c", "c.mp4"):
        duration = max(duration, kills.run(stream, *line, "--out", str(whole / name), "--overwrite"))
    want = pictures(whole / "c")
    for name, number in (("c", (count + 1) // 2), ("c.mp4", count // 2)):
        clip, part, done = here / name, here / f"{name}.part", 0
        while done < number:
            options = ["--out", str(clip), "--resume" if resumed else "--overwrite"]
            ended_by, before = kills.killed(stream, duration, *line, *options, finished=partial(frames_in, part, name))
            done += ended_by is not None
            if clip.exists():
                are_first(clip, want)
            kept = pictures(part / "c")
            assert all(map(np.array_equal, kept, want)), "frames that are no frames of the clip"
            playable = frames_in(part, name)
            if ended_by in (signal.SIGTERM, signal.SIGINT) and not resumed:
                assert left(here) == [], left(here)
                assert before == 0 or read_settings(clip)["frames"] >= before
            if resumed and ended_by is None:
                shutil.rmtree(here)
            if not resumed:
                if ended_by == signal.SIGKILL and not clip.exists():
                    clear_leftovers([here / "other.gif"])  # the next run
                    assert left(here) == [], left(here)
                    if playable:
                        are_first(clip, want)
                        assert read_settings(clip)["frames"] >= playable
                shutil.rmtree(here, ignore_errors=True)
        if resumed:
            kills.run(stream, *line, "--out", str(clip), "--resume")
            assert left(here) == [], left(here)
            got = {key: value for key, value in contents(here).items() if key.split("/")[0] in (name, f"{name}.json")}
            assert got == {key: value for key, value in contents(whole).items() if key in got} != {}
            assert len(got) == (17 if name == "c" else 2)
            shutil.rmtree(here)


def grids(kills: Kills, count: int) -> None:
    """Kill studies, each of which goes on."""
    study: Main = zs2.ablate.main
    prompts = kills.folder / "prompts.txt"
    prompts.write_text("[closed]\nrose\n[open]\nrose and star\n")
    line, done = [*GRID.split(), "--prompts", str(prompts)], 0
    duration = kills.run(study, *line, "--out", str(kills.folder / "all"))
    while done < count:
        ended_by, _ = kills.killed(study, duration, *line, "--out", str(kills.folder / "grid"))
        done += ended_by is not None
        if ended_by in (signal.SIGTERM, signal.SIGINT):
            assert left(kills.folder / "grid") == [], left(kills.folder / "grid")
        if ended_by is None:
            shutil.rmtree(kills.folder / "grid")
    kills.run(study, *line, "--out", str(kills.folder / "grid"))
    assert contents(kills.folder / "grid") == contents(kills.folder / "all") != {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    for name in ("resumed", "plain", "grids"):
        parser.add_argument(f"--{name}", type=int, default=0)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    kills = Kills(options.model, options.folder, options.seed)
    if options.resumed:
        streams(kills, options.resumed, resumed=True)
    if options.plain:
        streams(kills, options.plain, resumed=False)
    if options.grids:
        grids(kills, options.grids)
    print(f"{options.resumed + options.plain + options.grids} kills: nothing finished is lost, nothing is left")


if __name__ == "__main__":
    sys.exit(main())
