"""The command line of `python -m zs2.sample`. No torch here."""

from __future__ import annotations

from zs2.cli import command
from zs2.cli.derived_options import add_loading, add_method, add_model, add_sampling, flag, value_text
from zs2.cli.equal_motion import SHORT
from zs2.cli.values import drawn_seeds, size
from zs2.sampling.prompt_syntax import CUT, LINEAR
from zs2.sampling.request import FAST
from zs2.system.devices import COMPILE_HELP, DTYPE_HELP
from zs2.video.encoding import CRF, FPS_HELP, PINGPONG


def parser() -> command.Parser:
    """The parser of the command line. Options not given are absent from what it returns."""
    p = command.parser(
        "sample",
        "Make a video clip from a text prompt with an image diffusion model, without training (ZS²).",
        """examples:
  %(prog)s "strawberry on a sky blue background" --out berry.gif
  %(prog)s --attn sa --noise iid          every frame on its own: the baseline
  %(prog)s --seed 0..3 --out clips/c.webp  four clips: clips/c-s0.webp …
  %(prog)s --replay berry.gif --out again.gif
  %(prog)s --frames 2000 --stream --out long.mp4
  torchrun --nproc-per-node 2 -m zs2.sample --frames 64 --out berry.gif    one clip, made by two processes""",
    )
    p.add_argument("prompt", nargs="?", help="what to show, in quotes (default: the checkpoint's own example)")

    g = p.add_argument_group("model")
    add_model(g)
    add_loading(g, action="append")
    g.add_argument("--device", help="cpu, cuda, cuda:1, mps … (default: the first there is; of torchrun, its own)")
    g.add_argument("--dtype", metavar="DTYPE", help=DTYPE_HELP)
    g.add_argument("--compile", action="store_true", help=COMPILE_HELP)

    g = p.add_argument_group("method: what the ablations switch")
    add_method(g)
    g.add_argument(
        "--motion-target",
        type=float,
        metavar="M",
        help="find λ, a or the pixels of the noise, so that the clip has this motion (mean change of pixels, such as "
        f"0.03), by halving on clips of up to {SHORT} frames (default: as the noise has it)",
    )

    g = p.add_argument_group("sampling")
    add_sampling(g)
    g.add_argument("--fast", action="store_true", help=f"short for {fast()}; an option of its own wins")
    g.add_argument(
        "--seed",
        type=drawn_seeds,
        metavar="S",
        help="a number, a range 0..3 or a list 1,5,7: a clip each; random (or -1) draws one and says it (default 0)",
    )
    g.add_argument("--size", type=size, metavar="WxH", help="pixels (default: what the model was trained at)")
    g.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="frames of a UNet call: the same clip in the memory of N frames (default: as many as fit the free memory)",
    )
    g.add_argument(
        "--latents", metavar="FILE", help="safetensors with `latents`, float32 (frames, c, h, w): the initial noise"
    )

    g = p.add_argument_group("many prompts")
    g.add_argument("--prompts", metavar="FILE", help="one clip for each line")
    g.add_argument(
        "--travel",
        metavar="FILE",
        help="one clip that goes from prompt to prompt: one a frame, a line each, the last repeats; or lines "
        "`FRAME: prompt`, and between two such frames their contexts are interpolated",
    )
    g.add_argument(
        "--travel-mode",
        metavar="MODE",
        help=f"of lines `FRAME: prompt`: {LINEAR}, or {CUT}, which keeps each prompt until the next (default {LINEAR})",
    )

    g = p.add_argument_group("output")
    g.add_argument(
        "--out",
        metavar="FILE",
        help="by its ending: .gif, .webp (lossless), .png or .apng (animated), .mp4 (with zs2[video]); none: a folder "
        "of PNG files (default: the next free out/00001.gif). Its settings go to FILE.json, its contact sheet to "
        "FILE.sheet.png",
    )
    g.add_argument("--overwrite", action="store_true", help="replace what is there by the name of --out")
    g.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave out clips that are there by the name of --out, made by the same settings; other settings are an "
        "error, or with --overwrite made again",
    )
    g.add_argument(
        "--stream",
        action="store_true",
        help="make and write the frames chunk by chunk, for clips of any length: .mp4 or a folder of PNG files. "
        "Ctrl-C, SIGTERM or an error ends the clip with the frames that are there (default chunk: 8)",
    )
    g.add_argument(
        "--resumable",
        action="store_true",
        help="of --stream: keep the states of the last finished chunk in a file (--dry-run: its size), so that the "
        "stream can go on after a crash; frames are kept as PNG files until its end",
    )
    g.add_argument(
        "--resume",
        action="store_true",
        help="go on with the --resumable stream at --out, with the same options; begin if there is none",
    )
    g.add_argument("--state-device", metavar="DEVICE", help="of --stream: where states are kept (default: --device)")
    g.add_argument(
        "--process-timeout",
        type=float,
        metavar="SECONDS",
        help="of torchrun: how long to wait for a process that does not answer (default: 10 minutes beyond the longest "
        "step so far)",
    )
    g.add_argument("--dry-run", action="store_true", help="print the memory that this is expected to need, and stop")
    g.add_argument("--fps", metavar="N", help=FPS_HELP)
    g.add_argument("--quality", type=int, metavar="N", help="of .webp, 0 to 100: lossy and smaller (default lossless)")
    g.add_argument("--crf", type=int, metavar="N", help=f"of .mp4, 0 to 51: more is smaller and worse (default {CRF})")
    g.add_argument(
        "--loop", metavar="KIND", help=f"{PINGPONG}: the file plays the frames back again (default: from the start)"
    )
    g.add_argument(
        "--no-metadata",
        dest="metadata",
        action="store_false",
        help="no settings in the files, and no JSON: nobody can read the prompt, nor replay the clip",
    )
    g.add_argument("--no-sheet", dest="sheet", action="store_false", help="no contact sheet beside the clip")
    g.add_argument(
        "--replay",
        metavar="FILE",
        help="make the clip of this file (or of its JSON) again, bit for bit on the same machine",
    )
    return p


def fast() -> str:
    """The options that `--fast` stands for."""
    return " ".join(f"{flag(name)} {value_text(value)}" for name, value in FAST.items())
