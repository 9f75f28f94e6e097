"""Write GIFs of clips with zs2, and with ffmpeg's palettegen and paletteuse: how close they are, and how long it takes.

    python benchmarks/gif.py CLIP ...      clips of zs2 without loss, such as out/apple.webp

ffmpeg is that of PyAV (`pip install 'zs2[video]'`): one palette a frame, no dithering, as zs2 does. Each clip is
written as it is, and enlarged to 512 pixels. Times are of the processor, and end with the file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from common import add_json, machine, psnr, save, sentence, spread
from PIL import Image, ImageSequence

from zs2.video.clip import Clip


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("clips", nargs="+", metavar="CLIP", type=Path)
    add_json(p)
    args = p.parse_args(argv)
    hardware = machine()
    print(sentence(hardware))
    results: dict[str, Any] = {}
    clips = [Clip.open(path).frames for path in args.clips]
    for name, frames in {"own size": clips, "512 pixels": [enlarged(clip) for clip in clips]}.items():
        for way, write in WAYS.items():
            seconds, quality = zip(*(measured(write, one) for one in frames), strict=True)
            results[f"{name}, {way}"] = {"seconds": seconds, "psnr": quality}
            print(f"{f'{name}, {way}':<18} {spread(seconds, 3)} s a clip, {spread(quality, 1)} dB")
    save(args.json, hardware, results=results)


def enlarged(frames: Any) -> Any:
    """The frames at 512 pixels, bicubic."""
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((512, 512), Image.Resampling.BICUBIC)) for frame in frames]
    )


def measured(write: Callable[[Any, Path], None], frames: Any) -> tuple[float, float]:
    """Seconds of processor time, and the PSNR of the clip in dB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.gif"
        start = time.process_time()
        write(frames, path)
        seconds = time.process_time() - start
        with Image.open(path) as image:
            shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    return seconds, psnr(np.stack(shown), frames)


def with_zs2(frames: Any, path: Path) -> None:
    """`Clip.save`."""
    Clip(frames).save(path, json=False)


def with_ffmpeg(frames: Any, path: Path) -> None:
    """The filters that ffmpeg's users write, by PyAV."""
    height, width = frames.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 8))
    split, make = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1:dither=none")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(make, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with av.open(str(path), "w", format="gif") as container:
        stream = container.add_stream("gif", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"

        def drain() -> None:
            while True:
                try:
                    frame = graph.pull()
                except (av.BlockingIOError, av.EOFError):
                    return
                container.mux(stream.encode(frame))

        for index, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = index, Fraction(1, 8)
            graph.push(image)
            drain()
        graph.push(None)
        drain()
        container.mux(stream.encode())


WAYS = {"zs2": with_zs2, "ffmpeg": with_ffmpeg}


if __name__ == "__main__":
    main()
