"""What a training takes of its machine: processor, memory, GPU, disk.

A thread looks every second and adds up; asking gives the means since the last time it was asked. So the step itself
pays nothing for being watched: one reading takes about a millisecond, in the thread. What a machine does not tell is
left out, never guessed.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

_SECONDS = 1.0
_HIGHEST = frozenset({"cpu_celsius", "gpu_celsius", "rss_bytes", "gpu_memory_bytes"})
"""What matters at its highest, not on average."""

Reading = Mapping[str, float]
Source = Callable[[], Reading]


class ResourceSampler:
    """Samples in the background while the context lasts; `take` gives what was used since it was last called.

    Keys, each only where it can be read: `cpu_percent` (of this process; 100 is one core busy), `machine_cpu_percent`
    (of all cores), `rss_bytes`, `machine_memory_percent`, `cpu_celsius`, `gpu_use_percent`, `gpu_memory_bytes` (of the
    whole device), `gpu_celsius`, `gpu_watts`, `disk_free_bytes` (of the run's folder). Shares and watts are means,
    temperatures and memory the highest, the disk what is free now.
    """

    def __init__(self, folder: Path, seconds: float = _SECONDS, sources: tuple[Source, ...] | None = None) -> None:
        self.folder, self.seconds = folder, seconds
        self._sources = (process_source(), machine_source, *gpu_sources()) if sources is None else sources
        self._lock = threading.Lock()
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resources", daemon=True)

    def __enter__(self) -> ResourceSampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def take(self) -> dict[str, float]:
        """Means and highest values since the last call; at least one reading."""
        if not self._counts:
            self._sample()
        with self._lock:
            taken = {key: total if key in _HIGHEST else total / self._counts[key] for key, total in self._sums.items()}
            self._sums.clear()
            self._counts.clear()
        return taken | {"disk_free_bytes": float(shutil.disk_usage(self.folder).free)}

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            self._sample()

    def _sample(self) -> None:
        readings = {key: value for source in self._sources for key, value in source().items()}
        with self._lock:
            for key, value in readings.items():
                self._counts[key] += 1
                self._sums[key] = max(self._sums[key], value) if key in _HIGHEST else self._sums[key] + value


def process_source() -> Source:
    """Processor time and resident memory of this process; the first reading covers the time since now."""
    process: Any = psutil.Process()
    process.cpu_percent()

    def read() -> Reading:
        with process.oneshot():
            return {"cpu_percent": process.cpu_percent(), "rss_bytes": float(process.memory_info().rss)}

    return read


def machine_source() -> Reading:
    """Processor and memory of the whole machine, and the hottest processor sensor where there are any."""
    found = {
        "machine_cpu_percent": float(psutil.cpu_percent()),
        "machine_memory_percent": float(psutil.virtual_memory().percent),
    }
    sensors = getattr(psutil, "sensors_temperatures", None)  # Linux and FreeBSD only
    groups = sensors() if sensors is not None else {}
    degrees = [s.current for name in ("coretemp", "k10temp", "cpu_thermal") for s in groups.get(name, ()) if s.current]
    return found | ({"cpu_celsius": float(max(degrees))} if degrees else {})


def gpu_sources() -> tuple[Source, ...]:
    """Sources for the CUDA devices on which this process holds memory: mean use, summed memory and power, the hottest.

    Use, temperature and power come through NVIDIA's management library (package `nvidia-ml-py`), as far as driver and
    device tell them (a part of a divided GPU tells no use); memory comes from CUDA itself.
    """
    import torch

    if not torch.cuda.is_available():
        return ()
    sensors: dict[str, Callable[[list[int]], float]] = {}
    if importlib.util.find_spec("pynvml") is not None:
        sensors = {
            "gpu_use_percent": lambda devices: sum(torch.cuda.utilization(d) for d in devices) / len(devices),
            "gpu_celsius": lambda devices: float(max(torch.cuda.temperature(d) for d in devices)),
            "gpu_watts": lambda devices: sum(torch.cuda.power_draw(d) for d in devices) / 1000,
        }
    readable = {key: read for key, read in sensors.items() if _tells(read)}

    def gpu() -> Reading:
        devices = _devices_used()
        used = 0
        for device in devices:
            free, total = torch.cuda.mem_get_info(device)
            used += total - free
        return {"gpu_memory_bytes": float(used)} | {key: float(read(devices)) for key, read in readable.items()}

    return (gpu,)


def _devices_used() -> list[int]:
    """Devices with memory of this process; asking others would make a context of some hundred MiB on each."""
    import torch

    used = [d for d in range(torch.cuda.device_count()) if torch.cuda.memory_allocated(d)]
    return used or [torch.cuda.current_device()]


def _tells(read: Callable[[list[int]], float]) -> bool:
    """Whether a sensor can be read here."""
    not_told: type[Exception] = importlib.import_module("pynvml").NVMLError
    try:
        read(_devices_used())
    except (not_told, RuntimeError):
        return False
    return True
