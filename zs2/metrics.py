"""`python -m zs2.metrics`: measure clips. The metrics are in evaluation/metrics.py. Importing this needs no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from shlex import quote
from typing import Any

from zs2.cli.command import command, parser
from zs2.errors import InputError
from zs2.evaluation.measure import DEFAULT_CLIPS, LPIPS_HELP, measure_files
from zs2.evaluation.metrics import METRICS
from zs2.system.terminal import show

USED = {  # the options that a way of this command has no use for
    "CLIP": (),
    "--features": ("clip", "lpips", "device"),
    "--vbench": ("clip", "lpips", "device", "json"),
}


def run(options: dict[str, Any]) -> None:
    """Measure clips, or features, and print a table or JSON; or lay clips out for VBench."""
    ways = [f"--{name}" for name in ("features", "vbench") if name in options] or ["CLIP"]
    unused = [name for name in USED[ways[0]] if name in options]
    if len(ways) > 1 or ("clips" in options and ways[0] == "--features") or unused:
        others = ways[1:] or [f"--{name}" for name in unused] or ["CLIP"]
        raise InputError(f"{ways[0]} with {', '.join(others)}: give one of them alone")
    if ways[0] == "--features":
        from zs2.evaluation.features import distances

        measured = distances(options["features"])
        text = json.dumps(measured, indent=2) if options.get("json") else ""
        show(*(text.splitlines() or [f"{name:<18}{value:.6g}" for name, value in measured.items()]), most=None)
        return
    if "clips" not in options:
        raise InputError("no CLIP to measure: give some, or --features FILE")
    if ways[0] == "--vbench":
        from zs2.evaluation.vbench import lay_out

        videos, file = lay_out(options["clips"], options["vbench"])
        show(str(videos), str(file), most=None)
        words = f"--videos_path {quote(str(videos))} --prompt_file {quote(str(file))}"
        show(f"next: vbench evaluate {words} --mode custom_input --dimension motion_smoothness", most=None)
        return
    scorer, protocol, prompts, rows = measure_files(
        options["clips"], options.get("clip"), options.get("device"), options.get("lpips")
    )
    if options.get("json"):
        found = [{"clip": path, "prompt": prompts[path], "metrics": row} for path, row in rows.items()]
        show(*json.dumps({"protocol": protocol, "clips": found}, indent=2).splitlines(), most=None)
        return
    names = [name.rjust(7) for name in next(iter(rows.values()))]  # as wide as -0.1234
    show("  ".join([*names, "clip"]))
    for path, row in rows.items():
        values = ("—" if value is None else f"{value:.4f}" for value in row.values())
        cells = (value.rjust(len(name)) for value, name in zip(values, names, strict=True))
        show("  ".join([*cells, path]), most=None)
    only = "" if scorer.comparable else ", which came with a model: its scores compare only with each other"
    show("", f"CLIP: {scorer.name}{only}.")
    if "lpips" not in options:
        show("LPIPS is left out: give its weights with --lpips FILE.")
    show("A still picture has the best consistency there is: read it next to the motion.")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0; 1 if measuring failed; 2 for wrong input; 130 for Ctrl-C."""
    listed = "\n".join(f"  {one.name:<24}{one.meaning}" for one in METRICS.values() if not one.of_noise)
    p = parser(
        "metrics",
        "Measure clips that zs2 made: CLIP score, consistency, motion, SSIM, LPIPS, flow warping error.",
        f"""metrics:
{listed}
The prompt is read from the settings in a clip. The flow warping error needs pip install 'zs2[metrics]'.
Definitions and sources: the docstrings of metrics.py, structure.py, lpips.py and optical_flow.py in zs2/evaluation/""",
    )
    p.add_argument(
        "clips", nargs="*", metavar="CLIP", help="lossless ones: .webp, .png, .apng, or a folder of PNG files"
    )
    p.add_argument(
        "--clip",
        metavar="MODEL",
        help="the CLIP that scores: a folder or a model on the hub in transformers' layout, such as "
        "openai/clip-vit-base-patch32@refs/pr/15 (its main branch has pickles only), or a model folder with "
        f"image_encoder/ (default: {DEFAULT_CLIPS})",
    )
    p.add_argument("--lpips", metavar="FILE", help=LPIPS_HELP)
    p.add_argument("--device", help="cpu, cuda, cuda:1, mps … (default: the first there is of cuda, mps, cpu)")
    p.add_argument(
        "--features",
        metavar="FILE",
        help="instead of clips: the Fréchet and kernel distance (FVD and KVD) of features, a safetensors file with "
        "`reference` (n, d) of real clips and `clips` (m, d) of made ones",
    )
    p.add_argument(
        "--vbench", metavar="DIR", help="do not measure, but lay the clips out for the custom mode of VBench, as MP4"
    )
    p.add_argument("--json", action="store_true", help="print JSON, with the digests of the CLIP")
    return command(p, run, argv)


if __name__ == "__main__":
    sys.exit(main())
