"""The file formats of a clip: writing frames with their settings, and reading both back."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zs2.errors import InputError
from zs2.system.regular_files import first_bytes, read_text
from zs2.video.encoding import CRF, Encoding, Rate, durations, start, ways_to_store
from zs2.video.metadata import EXIF_IMAGE_DESCRIPTION, PNG_KEY, exif, png_text
from zs2.video.opening import check_bytes, open_image
from zs2.video.palette import paletted

Frames: TypeAlias = NDArray[np.uint8]  # (F, H, W, 3)

SETTINGS_MAX = 1 << 20  # characters; zs2 writes no file with more
STILLS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # pictures in the container of MP4
BEGINNINGS = {  # of files, by their usual ending
    ".gif": rb"GIF8",
    ".png": rb"\x89PNG",
    ".webp": rb"RIFF....WEBP",
    ".jpg": rb"\xff\xd8\xff",
    ".bmp": rb"BM....\0{4}",
    ".mkv": rb"\x1a\x45\xdf\xa3",
    ".mp4": b"....ftyp(?!" + b"|".join(STILLS) + b")",
    ".json": rb"(\xef\xbb\xbf)?\s*\{",
}
LEAST_BYTES = 24  # that a picture of an animation takes in its file


def _save_animation(images: list[Image.Image], path: Path | IO[bytes], format: str, **options: Any) -> None:
    images[0].save(path, format=format, save_all=True, append_images=images[1:], loop=0, **options)


def settings_file(settings: Mapping[str, Any]) -> bytes:
    """The settings as the JSON file beside a clip has them."""
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()


def _write_gif(frames: Frames, encoding: Encoding, text: str, path: Path) -> None:
    images = encoding.ordered([paletted(frame) for frame in frames])
    lasting = durations(len(images), encoding.fps, 100)
    clear = Image.new("P", images[0].size)  # shows the picture before it
    clear.putpalette(bytes(3))
    clear.info["transparency"] = 0
    ways = ways_to_store((image.convert("RGB").tobytes() for image in images), lasting)
    images = [clear if way else image for image, way in zip(images, ways, strict=True)]
    duration = [10 * hundredths for hundredths in lasting]
    # disposal 1: a frame is drawn over the one before, so only what changed is stored
    _save_animation(images, path, "GIF", duration=duration, disposal=1, comment=text.encode())


def _write_webp(frames: Frames, encoding: Encoding, text: str, path: Path) -> None:
    images = encoding.ordered([Image.fromarray(frame) for frame in frames])
    how: dict[str, Any] = {"lossless": True} if encoding.quality is None else {"quality": encoding.quality}
    duration = durations(len(images), encoding.fps, 1000)
    _save_animation(images, path, "WEBP", duration=duration, exif=exif(text), **how)


def write_apng(frames: Frames, encoding: Encoding, text: str, path: Path | IO[bytes]) -> None:
    """Write frames to an animated PNG."""
    ordered = encoding.ordered([*frames])
    duration = durations(len(ordered), encoding.fps, 1000)
    is_still = all(np.array_equal(frame, ordered[0]) for frame in ordered)
    # the two ways to blend look the same without transparency
    blend = 0 if is_still else ways_to_store((frame.tobytes() for frame in ordered), duration)
    images = [Image.fromarray(frame) for frame in ordered]
    _save_animation(images, path, "PNG", duration=duration, blend=blend, pnginfo=png_text(text))


def write_folder(frames: Iterable[Frames], _: Encoding, text: str, path: Path) -> None:
    """Write frames (H, W, 3) to 0000.png, 0001.png, … in a new folder, each as it comes."""
    path.mkdir()
    for index, frame in enumerate(frames):
        write_png(frame, text, frame_file(path, index))


def frame_file(folder: Path, index: int) -> Path:
    """The file of a frame in a folder of PNG files."""
    return folder / f"{index:04}.png"


def write_png(frame: Frames, text: str, path: Path) -> None:
    """Write one frame (H, W, 3) with the clip's settings to a PNG file."""
    Image.fromarray(frame).save(path, format="PNG", pnginfo=png_text(text))


def _write_mp4(frames: Frames, encoding: Encoding, text: str, path: Path) -> None:
    write_mp4(encoding.ordered([*frames]), encoding, text, path)


def write_mp4(frames: Iterable[Frames], encoding: Encoding, text: str, path: Path) -> None:
    """Write frames (H, W, 3) to an MP4 file, each as it comes."""
    writer = Mp4Writer(path, encoding, text)
    with writer.container:
        for frame in frames:
            writer.add(frame)
        writer.flush()


class Mp4Writer:
    """Writes an MP4 file frame by frame: `add` for each, then `flush`, and close the `container`, an object of PyAV.

    fragmented: the file is playable at any moment, up to the frame before the last. Its frames are encoded without
        delay, which takes more bytes. Otherwise the file is none before it is closed.
    """

    def __init__(self, path: Path, encoding: Encoding, text: str, *, fragmented: bool = False) -> None:
        self.av, self.fps, self.count = pyav(), encoding.fps, 0
        self.stream: Any = None
        flags = {"movflags": "+faststart"}
        if fragmented:
            flags = {"movflags": "+frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
        crf = CRF if encoding.crf is None else encoding.crf
        self.options = {"crf": str(crf)} | ({"tune": "zerolatency", "preset": "veryfast"} if fragmented else {})
        self.container = self.av.open(str(path.absolute()), "w", format="mp4", options=flags)
        if text:
            self.container.metadata["comment"] = text

    def add(self, frame: Frames) -> None:
        """Write the next frame (H, W, 3). Raises: OSError."""
        if self.stream is None:
            self.stream = self._stream(*frame.shape[:2])
        image = self.av.VideoFrame.from_ndarray(frame, format="rgb24")
        image = image.reformat(format="yuv420p", dst_colorspace="ITU709")
        image.pts, image.time_base = self.count, 1 / Fraction(self.fps)
        self.container.mux(self.stream.encode(image))
        self.count += 1

    def flush(self) -> None:
        """Write what the encoder still holds. Raises: OSError."""
        if self.stream is not None:
            self.container.mux(self.stream.encode())

    def _stream(self, height: int, width: int) -> Any:
        stream = self.container.add_stream("libx264", rate=self.fps, options=self.options)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # with more, the bytes depend on the machine's cores
        # 1 is BT.709 in the first three and limited range in the last: without them each player guesses the colours
        for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
            setattr(stream.codec_context, name, 1)
        return stream


def true_ending(path: Path) -> str:
    """The ending of a file's kind, by how it begins; else that of its name, in small letters.

    A clip that was given another ending, as messengers do, is what it was.
    """
    head = first_bytes(path)
    found = (ending for ending, begin in BEGINNINGS.items() if re.match(begin, head, re.DOTALL))
    return next(found, path.suffix.lower())


def read_frames(path: Path) -> tuple[Frames, list[int]]:
    """The pictures of a lossless file or folder, and when each ends, in ms. A still or a folder has no times.

    Raises: ValueError for more pictures than fit into the file, pictures of several sizes, or more than CLIP_MAX bytes
        of them, before they are decoded; what Pillow raises for a broken file.
    """
    files = [frame_file(path, index) for index in range(len(os.listdir(path)))] if path.is_dir() else [path]
    pictures, ends, now, first = np.empty((0, 0, 0, 3), np.uint8), [], 0.0, 0
    for file in files:
        with open_image(file, ("PNG", "WEBP")) as image:
            count, (width, height) = getattr(image, "n_frames", 1), image.size
            if count * LEAST_BYTES > file.stat().st_size:
                raise ValueError(f"it says that it has {count} pictures, which don't fit into its size")
            if first == 0:
                check_bytes(count * len(files), height, width)
                pictures = np.empty((count * len(files), height, width, 3), np.uint8)
            if count * len(files) != len(pictures) or (height, width) != pictures.shape[1:3]:
                raise ValueError("its pictures have several sizes")
            for index in range(count):
                image.seek(index)
                pictures[first] = np.asarray(image.convert("RGB"))
                first += 1
                now += float(image.info.get("duration", 0))
                ends += [round(now)] * (count > 1)
    return pictures, ends


def frames_in_time(ends: list[int], fps: Rate) -> list[int] | None:
    """How many frames at this rate each picture of an animation stands for. None if its times do not fit the rate."""
    counts, before = [], 0
    for end in ends:
        mark = round(end * fps / 1000)
        if mark <= before or start(mark, fps, 1000) != end:
            return None
        counts.append(mark - before)
        before = mark
    return counts


def remux_mp4(path: Path, text: str, target: Path) -> None:
    """Write the frames of an MP4 to another file, plain and with other settings. They are not encoded again."""
    av = pyav()
    with (
        av.open(str(path.absolute()), format="mp4") as source,
        av.open(str(target.absolute()), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.metadata["comment"] = text
        video = source.streams.video[0]
        old = not hasattr(container, "add_stream_from_template")  # PyAV before 14
        stream = container.add_stream(template=video) if old else container.add_stream_from_template(video)
        for packet in _packets(source):
            packet.stream = stream
            container.mux(packet)


def count_mp4(path: Path) -> int:
    """How many frames an MP4 has, of which a killed process may have been writing the last."""
    try:
        with pyav().open(str(path.absolute()), format="mp4") as source:
            return sum(1 for _ in _packets(source))
    except (OSError, ValueError):  # it ends in its head
        return 0


def _packets(source: Any) -> Iterator[Any]:
    """The whole packets of an MP4's video. Where it was cut off, they end."""
    try:
        for packet in source.demux(source.streams.video[0]):
            if packet.is_corrupt:
                return
            if packet.dts is not None:  # None: the last packet, which is empty
                yield packet
    except pyav().error.FFmpegError:
        return


def _read_json(path: Path) -> str | None:
    most = 4 * SETTINGS_MAX
    return read_text(path, most, "utf-8-sig") if path.stat().st_size <= most else None


def read_image(path: Path) -> str | None:
    """The settings stored in a GIF, PNG or WebP file, or None. Raises: what Pillow raises for a broken file."""
    with open_image(path, ("GIF", "PNG", "WEBP")) as image:
        comment = image.info.get("comment")
        text = comment.decode() if isinstance(comment, bytes) else image.info.get(PNG_KEY)
        return text or image.getexif().get(EXIF_IMAGE_DESCRIPTION)


def _read_mp4(path: Path) -> str | None:
    # Without a format, FFmpeg would take a playlist for a video and open the files that it names.
    with pyav().open(str(path.absolute()), format="mp4") as container:
        return container.metadata.get("comment")


def pyav() -> Any:
    """PyAV, which only MP4 needs. Raises: InputError if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise InputError(f"MP4 needs PyAV ({error}): pip install 'zs2[video]', or use .webp, .png or .gif") from error
    return av


WRITERS: dict[str, Callable[[Frames, Encoding, str, Path], None]] = {
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".png": write_apng,
    ".apng": write_apng,
    ".mp4": _write_mp4,
    "": write_folder,
}
LOSSY = (".gif", ".mp4")
READERS: dict[str, Callable[[Path], str | None]] = {
    ".json": _read_json,
    ".mp4": _read_mp4,
    **dict.fromkeys((".gif", ".webp", ".png", ".apng"), read_image),
}
