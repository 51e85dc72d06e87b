"""What this machine has: facts for a report."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from tunesmith.training.resources import available_memory, shown_bytes

_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a report."""

    name: str
    value: str


def machine_facts(device: torch.device) -> tuple[Fact, ...]:
    """Processor, threads, allocator, memory, disk, libraries, and the GPU where there is one."""
    facts = [
        Fact("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        Fact("libraries", ", ".join(_versions("torch", "transformers", "peft"))),
        Fact("threads", _threads()),
        Fact("allocator", _allocator()),
        Fact("memory", f"{shown_bytes(available_memory())} free of {shown_bytes(psutil.virtual_memory().total)}"),
        Fact("disk", f"{shown_bytes(shutil.disk_usage(Path.cwd()).free)} free in {Path.cwd()}"),
    ]
    return (*facts, *_gpu_facts(device))


def _versions(*names: str) -> list[str]:
    return [f"{name} {version(name)}" for name in names]


def _threads() -> str:
    cores = psutil.cpu_count(logical=False) or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    waiting = os.environ.get("OMP_WAIT_POLICY", "not set").lower()
    asked = os.environ.get("OMP_NUM_THREADS")
    told = f", OMP_NUM_THREADS={asked}" if asked else ""
    return (
        f"{torch.get_num_threads()} for products, {cores} physical cores, {usable} processors usable{told}; "
        f"waiting threads: {waiting}"
    )


def _allocator() -> str:
    """What serves memory: a library that was loaded before all others, or the system's own."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    found = next((name for name in _ALLOCATORS if name in preloaded), None)
    if found is not None:
        return f"{found}, loaded by LD_PRELOAD"
    libc, libc_version = platform.libc_ver()
    if libc == "glibc":
        return f"glibc {libc_version}, told to keep freed memory while training"
    return "the system's own"


def _gpu_facts(device: torch.device) -> list[Fact]:
    if device.type != "cuda":
        return [Fact("GPU", "none that torch can use" if not torch.cuda.is_available() else "not asked for")]
    about = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    fp8 = "fp8" if (about.major, about.minor) >= (8, 9) else "no fp8"
    return [
        Fact("GPU", f"{about.name}, compute capability {about.major}.{about.minor}, {bf16}, {fp8}"),
        Fact("GPU memory", f"{shown_bytes(free)} free of {shown_bytes(total)}"),
    ]


def installed(name: str) -> str | None:
    """A package's version, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
