"""What training uses: memory at its peak, and allocator settings that spare time."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch


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
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
            libc.mallopt(m_arena_max, 1)
            libc.mallopt(m_mmap_max, 0)
            libc.mallopt(m_trim_threshold, -1)
            libc.mallopt(m_top_pad, 64 << 20)
