"""What making an export costs: time, and the most memory that its process and all it started held together."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _export_models import Model, make_export
from tunesmith.models.artifact import Target

_EVERY = 0.05
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of computing by all processes together, which on one idle core would be those by the
    clock; bytes resident at one moment at most, where pages that processes share count for each."""

    seconds: float
    computing: float
    peak: int


def watched(command: Sequence[str]) -> Cost:
    """Run a command. Raises `RuntimeError` where it fails."""
    began, before, peak = time.perf_counter(), _computing(), 0
    with subprocess.Popen(list(command), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(_EVERY)
    if process.returncode != 0:
        raise RuntimeError(f"it ended with status {process.returncode}")
    return Cost(time.perf_counter() - began, _computing() - before, peak)


def cost_of(model: Model, target: Target, folder: Path) -> Cost:
    """Of one export by a fresh Python process: imports, merging, building, trying, hashing."""
    return watched([sys.executable, __file__, model.name, str(model.base), str(model.adapter), target.kind,
                    target.precision, str(folder)])  # fmt: skip


def _computing() -> float:
    """Seconds of all processes that this one started and that ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _resident(process: int) -> int:
    """Bytes of a process and of all it started, as far as they still run."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
        children = [
            int(child)
            for task in Path(f"/proc/{process}/task").iterdir()
            for child in (task / "children").read_text(encoding="ascii").split()
        ]
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return 0
    return pages * 4096 + sum(_resident(child) for child in children)


if __name__ == "__main__":
    _name, _base, _adapter, _kind, _precision, _out = sys.argv[1:]
    _made = make_export(
        Model(_name, Path(_base), Path(_adapter)),
        Target(_kind, _precision),  # type: ignore[arg-type]
        Path(_out),
        Path(_out).with_name("scratch"),
    )
    if isinstance(_made, str):
        sys.exit(_made)
