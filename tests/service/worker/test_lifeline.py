"""A worker's process ends, with its children, when its supervisor is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.test_workers_end import alive

SUPERVISOR = """\
import os, subprocess, sys, time
from pathlib import Path
from tunesmith.service.settings import ServeSettings
from tunesmith.service.store.nouns import Lease
from tunesmith.service.worker.orders import Order, send

child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, start_new_session=True)
lease = Lease("job:j", 1, "me", 2.0, 3)
send(Order("train", "j", lease, "cpu", ServeSettings(home=Path("h"), database="sqlite:///x")), child.stdin)
if sys.argv[1] == "forked" and os.fork() == 0:  # a copy of the server that holds the pipe open
    time.sleep(60)
time.sleep(60)
"""
CHILD = """\
import os, subprocess, sys, time
from tunesmith.service.worker.orders import receive

order = receive()
assert (order.job_id, order.lease.token, str(order.settings.home)) == ("j", 3, "h"), order
grandchild = subprocess.Popen(["sleep", "60"])
print(os.getpid(), grandchild.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("server", ["plain", "forked"])
def test_nobody_outlives_a_killed_supervisor(server):
    command = [sys.executable, "-c", f"CHILD = {CHILD!r}\n{SUPERVISOR}", server]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    try:
        assert len(workers) == 2 and all(alive(pid) for pid in workers)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 10
        while any(alive(pid) for pid in workers) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(alive(pid) for pid in workers)
    finally:
        for entry in Path("/proc").glob("[0-9]*"):  # the copy of the server
            if (entry / "stat").is_file() and os.getsid(int(entry.name)) == process.pid:
                os.kill(int(entry.name), signal.SIGKILL)


def test_without_an_order_a_process_ends():
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith.service.worker.process"], stdin=subprocess.DEVNULL, capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, 75)
