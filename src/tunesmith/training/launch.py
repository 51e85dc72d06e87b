"""Starts the processes of one training on this machine, and starts them again when one is lost.

The processes get the variables `torchrun` would give them, and may as well be started by it (several machines). Two
things are done here that `torchrun` does not do: an error that a person must mend (recipe, data, memory) ends the
training with that error's exit code instead of being repeated; and the processes find each other through a file, not
through a port that others could take or reach.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

_POLL_SECONDS = 0.05
_OWN_END_SECONDS = 3.0
"""When one process has failed, what the others get to end with an error of their own."""
_STOP_SECONDS = 30.0
"""After an interruption, or a request to end: then they are killed."""
_INTERRUPTED = 130
_MENDABLE = {2, 3, 4, 5, 6, _INTERRUPTED}
"""Exit codes of errors that would only happen again: see `tunesmith.errors`."""


def launch(command: Sequence[str], processes: int, restarts: int, tell: Callable[[str], None] | None = None) -> int:
    """Run `command` in so many processes until all have ended; returns an exit code: 0 where all ended well.

    A process that is killed or fails without a reason that a person could mend is lost: the others are stopped and all
    are started again, at most `restarts` times; they go on from the last checkpoint. Ctrl-C and a request to end are
    passed on once, and killed is what has not ended after 30 s or at a second one.

    Only the first process writes to our output; what another one said is shown where it is the one that failed.

    tell: is told of restarts and their reason, in a sentence; by default on stderr.
    """
    if processes < 1 or restarts < 0:
        raise ValueError(f"{processes} processes, {restarts} restarts")
    say = tell or (lambda text: print(f"tunesmith: {text}", file=sys.stderr, flush=True))
    with _signals() as received, tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        attempt = 0
        while True:
            ended = _Workers(command, processes, attempt, Path(folder), received).run()
            if not ended.lost or attempt == restarts:
                if ended.reason:
                    say(ended.reason)
                return ended.code
            attempt += 1
            say(f"{ended.reason}; starting all again from the last checkpoint ({attempt} of {restarts})")


def threads_each(processes: int) -> int:
    """Threads for each of so many processes: the physical cores this process may use, divided."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed) // processes)


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a group ended. `lost`: it may be started again. `reason`: what nobody has seen yet."""

    code: int
    lost: bool = False
    reason: str = ""


@dataclass(slots=True)
class _Received:
    """Signals this process was sent."""

    numbers: list[int] = field(default_factory=list)


class _Workers:
    """One group of processes, from start to end."""

    def __init__(self, command: Sequence[str], processes: int, attempt: int, folder: Path, received: _Received) -> None:
        self.received = received
        self.errors = [folder / f"{attempt}-{rank}.txt" for rank in range(processes)]
        self.started: list[subprocess.Popen[bytes]] = []
        common = {
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_each(processes))),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "TORCHELASTIC_RESTART_COUNT": str(attempt),
            "TUNESMITH_STORE": str(folder / f"store-{attempt}"),
            **_loopback(),
        }
        for rank in range(processes):
            with self.errors[rank].open("wb") as errors:
                self.started.append(
                    subprocess.Popen(
                        command,
                        env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL if rank else None,
                        stderr=errors if rank else None,
                        start_new_session=True,  # Ctrl-C reaches them through us, once
                    )
                )

    def run(self) -> _Ended:
        """Until all have ended, by themselves or stopped by us."""
        try:
            while True:
                codes = [p.poll() for p in self.started]
                if self.received.numbers:
                    self._stop(self.received.numbers[0], _STOP_SECONDS)
                    return _Ended(_INTERRUPTED if self.received.numbers[0] == signal.SIGINT else 128 + signal.SIGTERM)
                if all(code == 0 for code in codes):
                    return _Ended(0)
                if any(code for code in codes):
                    return self._failed()
                time.sleep(_POLL_SECONDS)
        finally:
            self._stop(signal.SIGKILL, _STOP_SECONDS)

    def _failed(self) -> _Ended:
        """Let the others end by themselves for a while, judge by those that did, and stop the rest."""
        first = next(rank for rank, p in enumerate(self.started) if p.poll())
        self._await(_OWN_END_SECONDS)
        codes = {rank: code for rank, p in enumerate(self.started) if (code := p.poll())}
        self._stop(signal.SIGTERM, _STOP_SECONDS)
        mendable = [rank for rank, code in codes.items() if code in _MENDABLE]
        killed = [rank for rank, code in codes.items() if code < 0]
        rank = (mendable or killed or [first])[0]
        code, said = codes[rank], _tail(self.errors[rank])
        if mendable:
            return _Ended(code, reason=said)
        words = f": {said}" if said else ""
        if code > 0:
            return _Ended(code, True, f"process {rank + 1} of {len(self.started)} failed{words}")
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return _Ended(128 - code, True, f"process {rank + 1} was killed ({name}{hint}){words}")

    def _stop(self, number: int, seconds: float) -> None:
        """Send a signal to all that run; kill them after so many seconds, or at a further signal to us."""
        before = len(self.received.numbers)
        for process in self.started:
            if process.poll() is None:
                process.send_signal(number)
        self._await(seconds, until=lambda: len(self.received.numbers) > before)
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.wait()

    def _await(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(p.poll() is None for p in self.started) and not until():
            time.sleep(_POLL_SECONDS)


@contextmanager
def _signals() -> Iterator[_Received]:
    """Within this context an interruption or a request to end is noted, not obeyed (in the main thread)."""
    received = _Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: FrameType | None) -> None:
        received.numbers.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _loopback() -> dict[str, str]:
    """Processes of one machine talk over its loopback interface only."""
    name = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    return {k: os.environ.get(k, name) for k in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} if name else {}


def _tail(path: Path, lines: int = 12) -> str:
    """The last lines of what a process wrote to `path`; the first process writes to our stderr instead."""
    return "\n".join(path.read_text(errors="replace").strip().splitlines()[-lines:])
