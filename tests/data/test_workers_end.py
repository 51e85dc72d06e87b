"""Worker processes of a scan end with the process that started them, also when that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """\
import os, sys, threading, time
from tunesmith.data.streaming import map_in_order

def work(number):
    os.write(1, f"{os.getpid()}\\n".encode())  # whole, whoever else writes
    time.sleep(60)

if __name__ == "__main__":
    if sys.argv[1] == "spawn":  # what a process with threads starts
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    list(map_in_order(work, range(4), 2))
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_do_not_outlive_a_killed_parent(tmp_path, method):
    script = tmp_path / "scan.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script), method], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    assert all(alive(pid) for pid in workers)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
