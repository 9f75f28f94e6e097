"""The free memory: of a GPU, or of the machine within the limits of its control groups."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from zs2.errors import InputError, counted

SPARE = 0.9  # the share of the free memory that a chunk may need, if it is chosen here


def free_memory(device: torch.device, sharing: int = 1) -> int | None:
    """The bytes that this process can hold on a device: those that it holds now, and those that are free.

    None if unknown. sharing: the number of processes that share the free memory of a CPU, in equal parts.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        recommended = getattr(torch.mps, "recommended_max_memory", None)  # since torch 2.5
        return None if recommended is None else int(recommended())
    if device.type != "cpu":
        return None
    available = kernel_numbers("/proc/meminfo").get("MemAvailable")
    own = kernel_numbers("/proc/self/status").get("RssAnon")  # weights that are mapped from their file count as free
    if available is None or own is None:
        return None
    room = _cgroup_room()
    return 1024 * own + (1024 * available if room is None else min(1024 * available, room)) // sharing


def address_room() -> tuple[int, str] | None:
    """The bytes that this process may still map by its own limits, and which limit that is. None without a limit.

    RLIMIT_AS (`ulimit -v`) counts all that is mapped: also weights that are mapped from their file, and what threads
    reserve. RLIMIT_DATA (`ulimit -d`) counts what is private and can be written.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    held, rooms = kernel_numbers("/proc/self/status"), []
    for limit, size, name in (("RLIMIT_AS", "VmSize", "ulimit -v"), ("RLIMIT_DATA", "VmData", "ulimit -d")):
        most = resource.getrlimit(getattr(resource, limit))[0]
        if most != resource.RLIM_INFINITY and size in held:
            rooms.append((max(0, most - 1024 * held[size]), name))
    return min(rooms, default=None)


def _cgroup_room() -> int | None:
    """The bytes that the limits of this process's control group and of those above it leave. None without a limit."""
    rooms = []
    for folder in _cgroup_folders():
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
                rooms.append(most - used + kernel_numbers(folder / "memory.stat").get(cache, 0))
            except (OSError, ValueError):  # no such file, or "max"
                continue
    return max(0, min(rooms)) if rooms else None


def _cgroup_folders() -> list[Path]:
    """The folders with the memory limits of this process's control group and of those above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup") / controllers
            inside = root / path.lstrip("/")
            folders += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(root)]
    return folders


def kernel_numbers(file: str | Path) -> dict[str, int]:
    """The lines `name: number` or `name number` of a file of the kernel. Empty if there is no such file."""
    try:
        words = [line.replace(":", " ").split() for line in Path(file).read_text().splitlines()]
    except OSError:
        return {}
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}


def process_size(otherwise: int) -> int:
    """The bytes that this process holds now; `otherwise` if the system does not report them."""
    resident = kernel_numbers("/proc/self/status").get("VmRSS")
    return otherwise if resident is None else 1024 * resident


def amount(size: float) -> str:
    """A number of bytes as text."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


class Need(Protocol):
    """The memory that something needs: in all, and the name of its largest part, an attribute."""

    @property
    def total(self) -> int: ...

    @property
    def largest(self) -> str: ...


def fitting(
    needs: Callable[[int], Need],
    wanted: int,
    free: int | None,
    *,
    asked: bool,
    advice: str = "",
    of: str = "",
) -> int:
    """The number of frames, at most `wanted`, that fit into the free memory at once.

    needs: the memory that a chunk of some number of frames needs. free: bytes, or None if unknown.
    asked: whether the user asked for `wanted`, so that no smaller number will do. advice: what else takes less memory.
    of: what limits the free memory, such as ` within ulimit -v`.
    Raises: InputError if not even one frame fits, or if `wanted` frames do not and the user asked for them.
    """
    if free is None or (need := needs(wanted)).total <= free:
        return wanted
    most = bisect_right(range(1, wanted), SPARE * free, key=lambda chunk: needs(chunk).total)  # larger chunks need more
    lack = f"a chunk of {counted(wanted, 'frame')} needs {amount(need.total)}, {amount(free)} are free{of}"
    lack += f" ({need.largest} needs most, {amount(vars(need)[need.largest])})"
    if not most:
        raise InputError(f"{lack}, and not even one frame at a time fits: try a smaller size, half precision{advice}")
    if asked:
        raise InputError(f"{lack}: {most} would fit")
    return most
