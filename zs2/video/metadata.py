"""The settings of a clip in its file: as JSON for zs2, and in PNG and WebP also as A1111's `parameters` for others.

    red apple on a table
    Negative prompt: blurry
    Steps: 25, Sampler: DDIM, CFG scale: 5, Seed: 0, Size: 512x512, Model hash: 0123456789, Model: sd15, Version: …

is that text, which the web UI makes the picture of frame 0 from. A PNG has it in a text chunk of that name, a WebP in
the user comment of its EXIF.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

PNG_KEY = "zs2"
PNG_MARK = f"tEXt{PNG_KEY}\0"  # the bytes of such a chunk, which stands before the picture
PARAMETERS_KEY = "parameters"
EXIF_IMAGE_DESCRIPTION = 0x010E
EXIF_IFD, EXIF_USER_COMMENT = 0x8769, 0x9286
SAMPLERS = {"ddim": "DDIM", "dpm++": "DPM++ 2M"}  # A1111's names of ours


def png_text(text: str) -> PngInfo:
    """The settings, JSON, as PNG text chunks: zs2's first. The empty text is none."""
    info = PngInfo()
    if text:
        info.add_text(PNG_KEY, text)
        if known := parameters(json.loads(text)):
            info.add_text(PARAMETERS_KEY, known)
    return info


def with_png_text(data: bytes, text: str) -> bytes:
    """The bytes of a PNG file with other settings of the same frame 0, without encoding it again.

    Raises: ValueError if there are no settings in it.
    """
    at, key = 8, f"{PNG_KEY}\0".encode()
    while at < len(data):  # chunks: length of the content, kind, content, checksum
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"tEXt" and data.startswith(key, at + 8):
            content = key + text.encode("ascii")
            checked = b"tEXt" + content
            return data[:at] + len(content).to_bytes(4) + checked + zlib.crc32(checked).to_bytes(4) + data[end:]
        at = end
    raise ValueError("no settings in this PNG file")


def exif(text: str) -> Image.Exif:
    """The settings, JSON, as EXIF. The empty text is none."""
    tags = Image.Exif()
    if text:
        tags[EXIF_IMAGE_DESCRIPTION] = text
        if known := parameters(json.loads(text)):
            tags.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = b"UNICODE\0" + known.encode("utf-16-be")
    return tags


def parameters(settings: Mapping[str, Any]) -> str:
    """A1111's text of a clip's settings; empty for settings that are not zs2's own.

    The prompt is that of frame 0. Signs that the web UI would read as weights are escaped where they were plain text.
    """
    prompt, negative = settings.get("prompt"), settings.get("negative_prompt")
    if isinstance(prompt, list | dict) and prompt:
        prompt = prompt[0] if isinstance(prompt, list) else next(iter(prompt.values()))
    if not isinstance(prompt, str) or not isinstance(negative, str):
        return ""
    if settings.get("prompt_syntax") != "a1111":
        prompt, negative = (re.sub(r"[()\[\]\\]", r"\\\g<0>", part) for part in (prompt, negative))
    sampler, weights, skip = settings.get("sampler"), settings.get("weights"), settings.get("clip_skip")
    fields = {
        "Steps": settings.get("steps"),
        "Sampler": SAMPLERS.get(str(sampler), sampler),
        "CFG scale": settings.get("guidance"),
        "Seed": settings.get("seed"),
        "Size": f"{settings.get('width')}x{settings.get('height')}",
        "Model hash": str(weights.get("unet"))[:10] if isinstance(weights, dict) and "unet" in weights else None,
        "Model": settings.get("model"),
        "Clip skip": skip + 1 if isinstance(skip, int) and skip else None,
        "Version": f"zs2 {settings['versions'].get('zs2')}" if isinstance(settings.get("versions"), dict) else None,
    }
    shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in fields.items()}
    quoted = {name: json.dumps(text) if re.search(r"[,:\n]", text) else text for name, text in shown.items()}
    line = ", ".join(f"{name}: {quoted[name]}" for name, value in fields.items() if value is not None)
    return "\n".join([prompt, *([f"Negative prompt: {negative}"] if negative else []), line])
