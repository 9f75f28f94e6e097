"""The command line of `python -m zs2.sample`. No torch here."""

from __future__ import annotations

from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.cli import command
from zs2.cli.values import pair, seeds, size
from zs2.method import ATTENTION_KINDS, NOISE_MODELS
from zs2.sampling.request import FAST
from zs2.sampling.solver import SOLVERS
from zs2.system.devices import DTYPES

EXAMPLE = "panda face on a sky blue background"  # of the default checkpoint


def parser() -> command.Parser:
    """The parser of the command line. Options not given are absent from what it returns."""
    p = command.parser(
        "sample",
        "Make a video clip from a text prompt with an image diffusion model, without training (ZS²).",
        """examples:
  %(prog)s "red apple on a sky blue background" --lam 0.15 --out apple.gif
  %(prog)s --attn sa --noise iid          every frame on its own: the baseline
  %(prog)s --seed 0..3 --out clips/c.webp  four clips: clips/c-s0.webp …
  %(prog)s --replay apple.json --out again.gif
  %(prog)s --frames 2000 --stream --out long.mp4
  torchrun --nproc-per-node 2 -m zs2.sample --frames 64 --out apple.gif    one clip, made by two processes""",
    )
    p.add_argument("prompt", nargs="?", help=f"what to show (default, for the default model only: {EXAMPLE!r})")

    g = p.add_argument_group("model")
    g.add_argument(
        "--model",
        metavar="PATH",
        help="a folder in the diffusers layout, a .safetensors file of SD 1.x, 2.x or XL in the original layout, or a "
        f"model on the hub: owner/name[@revision], or a short name, see {command.program('models')} (default "
        f"{DEFAULT_MODEL})",
    )
    g.add_argument("--lora", action="append", metavar="FILE[:SCALE]", help="merge a LoRA; may be given several times")
    g.add_argument("--prediction", metavar="P", help="epsilon or v: what single files of SD 2 do not say of themselves")
    g.add_argument("--device", help="cpu, cuda, cuda:1, mps … (default: the first there is; of torchrun, its own)")
    g.add_argument("--dtype", metavar="DTYPE", help=f"{', '.join(DTYPES)} (default float32)")

    g = p.add_argument_group("method: what the ablations switch")
    g.add_argument("--attn", metavar="KIND", help=f"attention over frames: {', '.join(ATTENTION_KINDS)} (default tma)")
    g.add_argument("--mu", type=float, help="momentum of tma and tma-two-tap: 0 (= sa) … 1 (= cfa) (default 0.98)")
    kinds = ", ".join(NOISE_MODELS)
    g.add_argument("--noise", metavar="KIND", help=f"initial noises: {kinds} (default dnm)")
    g.add_argument("--lam", type=float, help="λ of dnm and dnm-search: 0 (still) … √e (independent) (default 0.01)")
    g.add_argument("--alpha", type=float, help="a of mixed (default 1) and progressive (default 2) noise")
    g.add_argument(
        "--motion",
        type=pair(float),
        metavar="X,Y",
        help="of text2video-zero: pixels of 512 a frame, left and up (default 12,12; right: --motion=-12,0)",
    )
    g.add_argument(
        "--renoise",
        type=pair(int),
        metavar="T0,T1",
        help="of text2video-zero: how many steps come after frame 0 is warped, and after all frames go on (default "
        "44,47 of 50 steps, and in proportion). Its background smoothing is not there",
    )

    g = p.add_argument_group("sampling")
    g.add_argument("--negative-prompt", metavar="TEXT", help="what to lead away from (default: nothing)")
    g.add_argument("--frames", type=int, metavar="N", help="default 8")
    g.add_argument("--steps", type=int, metavar="N", help="default 50")
    g.add_argument(
        "--sampler",
        metavar="KIND",
        help=f"{' or '.join(SOLVERS)}: the paper's, or DPM-Solver++(2M), which needs fewer steps (default ddim)",
    )
    g.add_argument(
        "--guidance", type=float, metavar="G", help="u + G·(c − u); 1: only the prompt, at half the work (default 7.5)"
    )
    g.add_argument(
        "--guidance-interval",
        type=pair(float),
        metavar="A,B",
        help="guide only in this share of the steps, such as 0.2,0.8; the others take half the work (default 0,1: all)",
    )
    g.add_argument(
        "--deep-cache",
        type=int,
        metavar="N",
        help="make the UNet's deep features in every N-th step only, and take them over in the others, which then are "
        "approximate, at a fraction of the work (default 1: exact)",
    )
    g.add_argument("--fast", action="store_true", help=f"short for {fast()}; an option of its own wins")
    g.add_argument(
        "--seed", type=seeds, metavar="S", help="a number, a range 0..3 or a list 1,5,7: a clip each (default 0)"
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
    g.add_argument("--travel", metavar="FILE", help="one clip, one prompt a frame: a line each, the last repeats")

    g = p.add_argument_group("output")
    g.add_argument(
        "--out",
        metavar="FILE",
        help="by its ending: .gif, .webp (lossless), .png or .apng (animated), .mp4 (with zs2[video]); none: a folder "
        "of PNG files (default: the next free out/00001.gif). A JSON with all settings is put beside it",
    )
    g.add_argument(
        "--stream",
        action="store_true",
        help="make and write the frames chunk by chunk, for clips of any length: .mp4 or a folder of PNG files. Ctrl-C "
        "ends the clip with the frames that are there (default chunk: 8)",
    )
    g.add_argument("--state-device", metavar="DEVICE", help="of --stream: where states are kept (default: --device)")
    g.add_argument("--dry-run", action="store_true", help="print the memory that this is expected to need, and stop")
    g.add_argument("--fps", type=int, metavar="N", help="frames a second (default 8)")
    g.add_argument("--no-sheet", dest="sheet", action="store_false", help="no contact sheet beside the clip")
    g.add_argument(
        "--replay", metavar="FILE", help="make the clip of this JSON (or clip) again, bit for bit on the same machine"
    )
    return p


def fast() -> str:
    """The options that `--fast` stands for."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in FAST.items())
