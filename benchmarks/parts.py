"""Time the parts of a clip of the default checkpoint, from the start of the process to the files.

    python benchmarks/parts.py             the clip of benchmarks/clip.py, as `python -m zs2.sample` makes it

Each clip is made by a process of its own. The time of a part is the median over the clips, and so is that of the whole.
Here the weights are hashed before the first step, to time both separately. The command hashes them during the steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clip import CASES, DEFAULT, LAM, MU, PROMPT
from common import add_json, alone, machine, save, sentence, since_begun, spread

CASE = CASES["default"]


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=9)
    add_json(p)
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.child:
        print(json.dumps(child()))
        return
    hardware = machine()
    print(f"{sentence(hardware)}; median of {args.rounds} (least … most)")
    runs: list[dict[str, float]] = [alone(__file__, "--child") for _ in range(args.rounds)]
    wholes = [sum(run.values()) for run in runs]
    print(f"\n{CASE.frames} frames of {CASE.size}², {CASE.steps} steps: {spread(wholes, 2)} s")
    for part in runs[0]:
        times = [run[part] for run in runs]
        print(f"{part:<44} {spread(times, 2):<22} {statistics.median(times) / statistics.median(wholes):.0%}")
    save(args.json, hardware, runs=runs)


def child() -> dict[str, float]:
    """Make the clip as the command does. Returns: the seconds of each part, in order."""
    ends = {"Python, and what measures (numpy, torch)": since_begun()}
    import zs2.pipeline
    import zs2.sample
    import zs2.video.clip
    from zs2.sampling.decoding import decode_frames
    from zs2.sampling.sampler import Sampler

    ends["the imports of zs2 and all else"] = since_begun()
    model = zs2.pipeline.ZS2.from_pretrained(DEFAULT, mu=MU, lam=LAM)
    ends["weights"] = since_begun()
    request = zs2.Request(PROMPT, frames=CASE.frames, steps=CASE.steps, guidance=CASE.guidance)
    plan = model.plan(request)
    settings = model.settings(plan, 8)
    ends["plan and settings"] = since_begun()
    steps = Sampler(plan).steps()
    next(steps)
    ends["text, noises and the first step"] = since_begun()
    *_, step = steps
    ends["the other steps"] = since_begun()
    pixels = decode_frames(plan, step.latents)
    ends["decoding"] = since_begun()
    with tempfile.TemporaryDirectory() as scratch:
        zs2.video.clip.Clip(pixels, 8, settings).save(Path(scratch, "clip.gif"))
        ends["GIF, contact sheet and settings"] = since_begun()
    starts = [0.0, *ends.values()]
    return {part: end - start for (part, end), start in zip(ends.items(), starts, strict=False)}


if __name__ == "__main__":
    main()
