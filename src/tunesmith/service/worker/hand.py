"""A process that works on one job: how it is started, told to stop, and ended with all its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from tunesmith.service.worker.orders import Order, send


@dataclass(slots=True)
class Hand:
    """A process at work. `renew_at`, `kill_at`: moments of the monotonic clock; `killed`: it was ended from here;
    `seq`: where the job's events stood when it was started.
    """

    process: subprocess.Popen[bytes]
    order: Order
    renew_at: float
    kill_at: float | None = None
    told: bool = False
    killed: bool = False
    seq: int = 0

    def tell_to_stop(self, seconds: float) -> None:
        """Ask it to finish its step and hand its work back; it is to be killed after `seconds`."""
        if not self.told:
            self.told, self.kill_at = True, time.monotonic() + seconds
            with suppress(ProcessLookupError):
                self.process.terminate()

    def kill(self) -> None:
        """End it and its children at once."""
        self.killed = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process that waits for a disk ends when that has answered
            self.process.wait(5)

    def close(self) -> None:
        """End what children it left, and let go of its pipe."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()


def start(order: Order, renew_seconds: float) -> Hand:
    """Start a process for an order, in a session of its own so that no terminal's Ctrl-C reaches it.

    What it prints goes to `home/logs/<job>.log`. Raises `OSError` where it cannot be started.
    """
    logs = order.settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "tunesmith.service.worker.process",
        "--kind", order.kind, "--job", order.job_id, "--device", order.device,
    ]  # fmt: skip
    with (logs / f"{order.job_id}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": _visible(order.device), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    if process.stdin is None:
        raise RuntimeError("a process was started without its pipe")
    with suppress(BrokenPipeError):  # it died at once: the supervisor sees that
        send(order, process.stdin)
    return Hand(process, order, time.monotonic() + renew_seconds)


def _visible(device: str) -> str:
    """What a process may see of the GPUs: `cuda:1` is its first and only one, and on a CPU there is none."""
    if device == "cuda":
        return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return device.removeprefix("cuda:") if device.startswith("cuda:") else ""
