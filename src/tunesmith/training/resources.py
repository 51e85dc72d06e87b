"""Memory: what this process holds and held at most, what there is, and allocator settings that spare time and space."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from tunesmith.errors import RecipeError

FREE_SHARE = 0.9
"""Of the memory that is free, what training takes where the recipe sets no limit."""
_UNITS = {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}
_PAGE = resource.getpagesize()


def parse_memory(text: str) -> int:
    """Bytes of a size such as `6GB`, `1.5 GiB` or `800MB`. Raises `RecipeError` for anything else and for nothing."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB|MB|MiB)", text.strip())
    size = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not size:
        raise RecipeError(
            f"{text!r} is not a size of memory", where="train.memory_limit", expected="auto, or a size such as 6GB"
        )
    return size


def shown_bytes(size: float) -> str:
    """A size as people read it, in powers of ten: 812 MB, 6.20 GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def memory_limit(setting: str, device: torch.device | str = "cpu") -> int:
    """Bytes that the process (on a GPU: its tensors there) may hold at most, by the recipe's `train.memory_limit`.

    auto: what it holds now and nine tenths of what is free now.
    """
    if setting != "auto":
        return parse_memory(setting)
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = available_memory()
    return held_memory(device) + int(FREE_SHARE * free)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes this process can still take without swapping: of the machine, or of its control group where that has less.

    A control group's cached files count as free, as the kernel drops them first. `root`: where the system's files lie.
    """
    return min([int(psutil.virtual_memory().available), *_left_in_groups(root)])


def _left_in_groups(root: Path) -> list[int]:
    """Bytes left in the control groups (version 2 and 1) this process is in, and in those around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        if controllers:
            top, names = top / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        inner = top / path.lstrip("/")
        # Inside a container the path may be the host's, and only the group's own folder is there, at the top.
        for folder in dict.fromkeys([inner, *inner.parents, top]):
            if folder == top or top in folder.parents:
                left += _left_in_group(folder, *names)
    return left


def _left_in_group(folder: Path, limit_file: str, used_file: str, cached: str) -> list[int]:
    try:
        limit, used = (folder / limit_file).read_text().strip(), int((folder / used_file).read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # the top group of version 2 has no such files
        return []
    return [] if limit == "max" else [max(0, int(limit) - used + int(facts.get(cached, 0)))]


def held_memory(device: torch.device | str = "cpu") -> int:
    """Bytes held now: by tensors on a GPU, else resident in this process."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def settle(model: nn.Module) -> int:
    """What the process holds with the model and nothing else: bytes, as `held_memory`.

    Memory freed by what ran before goes back to the system, and weights that are only mapped from their files, and come
    into memory when they are first used, are brought in.
    """
    device = next(model.parameters()).device
    release_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.numel():
            _touch(tensor)
    return held_memory(device)


def _touch(tensor: Any) -> None:
    """Read one byte of every page of a tensor on the CPU."""
    storage = tensor.detach().untyped_storage()
    whole = torch.empty(0, dtype=torch.uint8).set_(storage)
    whole[::_PAGE].max()


def reset_peak_memory() -> None:
    """Start a new peak measurement (Linux and CUDA; elsewhere the peak is the process's)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    marker = Path("/proc/self/clear_refs")
    if marker.exists():
        try:
            marker.write_text("5")
        except OSError:  # not permitted in some containers: the peak then includes what came before
            return


def peak_memory() -> int:
    """Peak bytes since the last reset: allocated on the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step: fresh pages from the kernel cost more than the arithmetic on them.

    One arena for all threads, as the backward pass runs in a thread of its own whose arena could not hold large
    blocks; no block by `mmap`, which is returned when freed; no trimming of the heap's end.
    """
    if libc := _glibc():
        m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
        libc.mallopt(m_arena_max, 1)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
        libc.mallopt(m_top_pad, 64 << 20)


def release_freed_memory() -> None:
    """Give freed blocks back to the system, those in the middle of the heap too."""
    if libc := _glibc():
        libc.malloc_trim(0)


class HeapWatch:
    """Keeps a training below its memory limit by giving freed blocks back between two steps.

    Blocks of ever other sizes leave holes in the heap that nothing fits in, so it grows for some steps. Giving freed
    memory back costs up to half a step, as every page comes from the kernel anew; so it is done only where the process
    holds more than the limit allows.

    Attributes
    ----------
    limit: bytes that the process should not hold more of. releases: how often memory was given back.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.releases = limit, 0

    def after_step(self) -> None:
        """To be called when the step's gradients are dropped."""
        if _glibc() is not None and held_memory() > self.limit:
            release_freed_memory()
            self.releases += 1


def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
