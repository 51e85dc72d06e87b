"""What processes that train together tell each other. That they train as one does is tested with `launch`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import ragged_samples
from tests.training.together import PROJECT
from tunesmith.text.types import Group, Sample
from tunesmith.training import processes
from tunesmith.training.launch import launch

needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no distributed training"
)
TALK = """
import json, os, sys
from pathlib import Path
import torch
from tunesmith.errors import DataError, EngineError
from tunesmith.training import processes

torch.set_num_threads(1)
said = {}
with processes.joined():
    rank = processes.rank()
    said["place"] = [processes.count(), rank, processes.first()]
    gradients = [torch.full((3,), float(rank + 1)), torch.full((2, 2), 10.0 ** rank, dtype=torch.float64)]
    said["sums"] = processes.sum_gradients(gradients, [0.25 * (rank + 1), 2.0**40 * rank + 1])
    said["gradients"] = [g.flatten().tolist() for g in gradients]
    said["gathered"] = processes.gather({"rank": rank})
    done = []
    said["first"] = processes.first_only(lambda: done.append(rank) or {"by": rank})
    said["done"] = done
    for error in (DataError("bad row", where="a.csv:3", fix="mend it"), ValueError("odd")):
        def fail():
            raise error
        try:
            processes.first_only(fail)
        except Exception as raised:
            said[str(error)] = [type(raised).__name__, str(raised)]
    try:
        processes.sum_gradients([torch.nn.Parameter(torch.ones(1))], [])
    except TypeError as error:
        said["parameter"] = str(error)
    said["seed"] = processes.step_seed(3, 7)
    processes.wait()
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(said))
"""
LOSE = """
import os, sys
import torch
from tunesmith.training import processes

with processes.joined():
    if processes.rank():
        os._exit(0)
    try:
        processes.gather(1)
    except processes.LostError as error:
        sys.exit(0 if error.exit_code == 75 and "another process" in str(error) else 9)
"""
WAIT = """
import os, sys, time
from pathlib import Path
from tunesmith.training import processes

with processes.joined():
    Path(sys.argv[1], str(processes.rank())).write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def worker_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT / 'src'}{os.pathsep}{PROJECT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.slow
@needs_distributed
def test_two_processes_talk(tmp_path, worker_environment):
    told: list[str] = []
    assert launch([sys.executable, "-c", TALK, str(tmp_path)], 2, 0, told.append) == 0, told
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, mine in enumerate(said):
        assert mine["place"] == [2, rank, rank == 0]
        assert mine["sums"] == [0.75, 2.0**40 + 2]  # exact, as whole numbers of tokens must be
        assert mine["gradients"] == [[3.0] * 3, [11.0] * 4]
        assert mine["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert mine["first"] == {"by": 0} and mine["done"] == ([] if rank else [0])
        assert mine["a.csv:3: bad row\n  to do: mend it"][0] == "DataError"
        assert mine["a.csv:3: bad row\n  to do: mend it"][1].startswith("a.csv:3: bad row")
        assert "optimizer.gradients()" in mine["parameter"]
    assert said[0]["odd"] == ["ValueError", "odd"]
    assert said[1]["odd"] == ["EngineError", "the first process failed: odd"]
    assert said[0]["seed"] != said[1]["seed"]


@pytest.mark.slow
@needs_distributed
def test_one_that_is_gone_is_told_of(tmp_path, worker_environment):
    assert launch([sys.executable, "-c", LOSE], 2, 0) == 0


@pytest.mark.slow
@needs_distributed
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked for it")
def test_processes_end_with_the_one_that_started_them(tmp_path, worker_environment):
    program = "import sys; from tunesmith.training.launch import launch; "
    program += f"launch([sys.executable, '-c', {WAIT!r}, {str(tmp_path)!r}], 2, 0)"
    starter = subprocess.Popen([sys.executable, "-c", program])
    files = [tmp_path / "0", tmp_path / "1"]
    end = time.monotonic() + 60
    while not all(f.exists() and f.read_text() for f in files):
        assert time.monotonic() < end and starter.poll() is None
        time.sleep(0.05)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    while any(Path(f"/proc/{f.read_text()}/cmdline").exists() and alive(int(f.read_text())) for f in files):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may still be listed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1, max_size=20),
    count=st.integers(1, 5),
)
def test_shares_are_a_partition_of_about_equal_size(lengths, count):
    """Of documents and of groups, which are never divided."""
    rows: list[Sample | Group] = []
    for number, sizes in enumerate(lengths):
        samples = [Sample(np.zeros(n, np.int64), np.ones(n, np.float32), f"row {number}") for n in sizes]
        rows.append(samples[0] if len(samples) == 1 else Group(tuple(samples), 1.0, f"row {number}"))
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for rank in range(count):
            patch.setattr(processes, "count", lambda: count)
            patch.setattr(processes, "rank", lambda rank=rank: rank)
            shares.append(list(processes.share(rows)))
    assert sorted(s.example_id for share in shares for s in share) == sorted(s.example_id for s in rows)
    sizes_there = [sum(processes._tokens(s) for s in share) for share in shares]
    assert max(sizes_there) - min(sizes_there) <= max(sum(sizes) for sizes in lengths)


def test_one_process_alone_is_not_disturbed():
    rows = ragged_samples()
    with processes.joined():
        assert processes.count() == 1 and processes.first() and processes.rank() == 0
    assert processes.share(rows) is rows
    gradient = torch.ones(2)
    assert processes.sum_gradients([gradient], [0.5, 7]) == [0.5, 7] and bool((gradient == 1).all())
    assert processes.gather("x") == ["x"] and processes.first_only(lambda: 3) == 3
    with pytest.raises(ValueError, match="as it is"):
        processes.first_only(lambda: (_ for _ in ()).throw(ValueError("as it is")))
    processes.wait()


def test_random_numbers_of_a_step_depend_on_seed_step_and_process(monkeypatch):
    seeds = {processes.step_seed(seed, step) for seed in range(5) for step in range(50)}
    assert len(seeds) == 250 and all(0 <= s < 2**63 for s in seeds)
    assert processes.step_seed(1, 2) == processes.step_seed(1, 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert processes.step_seed(1, 2) not in seeds
