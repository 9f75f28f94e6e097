"""Damage to files: one random change of a JSON, of a safetensors header, of a picture, or of any bytes."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

DIGITS = "a number of 5,000 digits"  # which json.dumps does not write
NESTED = "lists in lists"

# What a value is replaced by. Each has ended a reader somewhere with a traceback, or worse.
EVIL: tuple[Any, ...] = (
    *(None, True, False, 0, -0.0, 1, 2, -1, 3, 7, 0.5, -0.5, 1e-320, 1e308, 1e999, float("nan")),
    *(10**5, 10**9, 2**31, 2**32, 2**53, 2**63, 2**64, 10**400, DIGITS, NESTED),
    *("", " ", "x", "../../x", "/etc/passwd", "a\0b", "\ud800", "\udfff", "\x1b[2J", "\u202e", "=1+1", "x;=1+1"),
    *("A" * 10_000, "9" * 5000, "1" * 400, "None", "null", "true", "<script>", "%s%n", "\U0001f339", "٣", "1e3"),
    *([], {}, [[]], [None], [1], [1, 2], [1] * 1000, [0, 10**9], ["x"], {"a": 1}, [{}], [[1, 2], [3]], {"": ""}),
)
NAMES = ("", "..", "../x", "__class__", "A" * 300, "1" * 5000, "0", "id", "\ud800", "\x1b[31m")


def text_of(value: Any) -> bytes:
    """A JSON with values that only other writers than Python's write."""
    text = json.dumps(value)
    return text.replace(f'"{DIGITS}"', "9" * 5000).replace(f'"{NESTED}"', "[" * 3000 + "]" * 3000).encode()


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each value within a JSON, as its container and key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    return found + [place for key in keys for place in places(value[key])]


def evil(random: Random) -> Any:
    """One of EVIL, which a later change of the same JSON may change."""
    return copy.deepcopy(random.choice(EVIL))


def change_value(random: Random, value: Any) -> Any:
    """A JSON with one random change."""
    found = places(value)
    if not found or random.random() < 0.02:
        return evil(random)
    within, key = random.choice(found)
    kind = random.randrange(10)
    if kind < 6:
        within[key] = evil(random)
    elif kind == 6:
        del within[key]
    elif kind == 7:  # the value of another place
        other, name = random.choice(found)
        if name in other if isinstance(other, dict) else name < len(other):
            within[key] = json.loads(json.dumps(other[name]))
    elif isinstance(within, dict):
        within[random.choice(NAMES)] = copy.deepcopy(within[key]) if kind == 8 else evil(random)
    else:
        within.extend(copy.deepcopy(within[key]) for _ in range(random.choice((1, 3, 100))))
    return value


def change_json(random: Random, content: bytes) -> bytes:
    """The text of a JSON with one random change, or damaged bytes."""
    if random.random() < 0.12:
        return change_bytes(random, content)
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        value = change_value(random, value)
    text = text_of(value)
    if random.random() < 0.05 and text.startswith(b'{"'):  # a key that is there twice
        key = text[: text.find(b'":') + 1]
        text = key + b": " + text_of(random.choice(EVIL)) + b", " + text[1:]
    return text


def change_bytes(random: Random, content: bytes) -> bytes:
    """Bytes that are flipped, cut off, doubled or inserted."""
    some = bytearray(content)
    kind = random.randrange(6)
    if kind == 0 or not some:
        return random.choice((b"", b"\0", b"null", b"[]", b"{}", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 50_000))
    at = random.randrange(len(some))
    if kind == 1:
        return bytes(some[:at])
    if kind == 2:
        return bytes(some[:at] + random.randbytes(random.randint(1, 20)) + some[at:])
    if kind == 3:
        return bytes(some + some[at:])
    for _ in range(random.choice((1, 1, 3, 30))):
        some[random.randrange(len(some))] ^= 1 << random.randrange(8)
    return bytes(some)


def change_tensors(random: Random, content: bytes) -> bytes:
    """A safetensors file with a header that says something else, or damaged bytes."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = random.randrange(12)
    if kind == 0:
        return change_bytes(random, content)
    if kind == 1:
        return struct.pack("<Q", random.choice((0, 1, size + 1, 2**31, 2**63, 2**64 - 1))) + content[8:]
    if kind == 2:
        return content[:8] + change_bytes(random, header) + data
    if kind == 3:
        return content[:8] + header + data[: random.randrange(len(data) + 1)]
    tensors = json.loads(header)
    names = [name for name in tensors if name != "__metadata__"]
    name = random.choice(names)
    if kind == 4:  # another name
        other = name.replace(
            *random.choice((("0", "9" * 5000), ("0", "7"), (".", ".."), ("1", "٣"), ("weight", "bias")))
        )
        tensors[random.choice((other, *NAMES[:-2]))] = tensors.pop(name)
    elif kind == 5:
        del tensors[name]
    elif kind == 6:
        one, other = tensors[name], tensors[random.choice(names)]
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
    elif kind == 7:
        tensors[name]["shape"] = random.choice(([], [0], [1], [-1], [2**63], [2**32, 2**32], [0, 2**62], ["x"], None))
    elif kind == 8:
        shape = tensors[name]["shape"]
        tensors[name]["shape"] = random.choice((shape[::-1], [1, *shape], [*shape, 1], [sum(shape)]))
    elif kind == 9:
        tensors[name]["dtype"] = random.choice(("F16", "BF16", "I32", "F8_E4M3", "F4", "C64", "BOOL", "x", None, 1))
    elif kind == 10:  # metadata
        key = random.choice(METADATA)
        tensors["__metadata__"] = {**(tensors.get("__metadata__") or {}), key: random.choice(WORDS)}
    else:
        tensors = change_value(random, tensors)
    text = text_of(tensors)
    return struct.pack("<Q", len(text)) + text + data


METADATA = (
    *("format", "modelspec.prediction_type", "modelspec.predict_key", "modelspec.resolution", "modelspec.architecture"),
    *("modelspec.timestep_range", "ss_clip_skip", "ztsnr", "ss_v_parameterization", "lora_adapter_metadata", "\x1b[2J"),
)
WORDS = (
    *("", "v", "epsilon", "pt", "512x512", "99999x99999", "0x0", "true", "9" * 5000, "\x1b[2J", "A" * 100_000, "1,2"),
    *(
        "{",
        "[]",
        '{"unet.lora_alpha": 1e999}',
        '{"unet.r": "x", "unet.alpha_pattern": {"(": 1}}',
        '{"unet.lora_alpha": {}}',
    ),
    *(
        '{"unet.alpha_pattern": []}',
        '{"unet.use_rslora": 3, "unet.use_dora": true, "unet.rank_pattern": {"x": 10000000000}}',
    ),
)


def change_picture(random: Random, content: bytes) -> bytes:
    """A PNG with a chunk that says something else, its checksum right; or damaged bytes of any picture."""
    if content[:4] != b"\x89PNG" or random.random() < 0.2:
        return change_bytes(random, content)
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    number = random.randrange(len(chunks))
    name, body = chunks[number]
    kind = random.randrange(6)
    if kind == 0:
        chunks.insert(number, chunks[random.randrange(len(chunks))])
    elif kind == 1:
        del chunks[number]
    elif kind == 2 and name in (b"IHDR", b"acTL", b"fcTL"):
        place = random.randrange(0, len(body) - 3)
        value = struct.pack(">I", random.choice((0, 1, 65, 10**5, 2**31 - 1, 2**32 - 1)))
        chunks[number] = name, body[:place] + value + body[place + 4 :]
    elif kind == 3 and name == b"tEXt":
        chunks[number] = name, b"zs2\0" + change_json(random, body[4:])[: 10**6]
    else:
        chunks[number] = name, change_bytes(random, body)[: 10**6]
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return content[:8] + b"".join(parts)


Damage = Callable[[Random, bytes], bytes]
BY_ENDING: dict[str, Damage] = {
    ".json": change_json,
    ".safetensors": change_tensors,
    **dict.fromkeys((".png", ".webp", ".gif", ".mp4"), change_picture),
}


def damaged(random: Random, ending: str, content: bytes) -> bytes:
    """The content of a file with an ending, damaged."""
    return BY_ENDING.get(ending, change_bytes)(random, content)
