"""Two processes train as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import ragged_samples
from tests.training.small import PLAN, ROWS, VALIDATION, tunable, weights
from tunesmith.training import loop, processes
from tunesmith.training.loop import train

PROJECT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from tests.training.test_processes import trained
from tunesmith.training import loop

torch.set_num_threads(1)
loop._LOG_SECONDS = 0.0
rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
torch.save(trained(folder / "checkpoints"), folder / f"{rank}.pt")
dist.destroy_process_group()
"""


def trained(folder: Path) -> dict[str, Any]:
    """What a training in this process (and those beside it) ends with.

    In float64: losses near 7 have a resolution of 5e-7 in float32, too coarse to tell a wrong share from rounding.
    """
    model = tunable(dtype=torch.float64)
    result = train(model, ROWS, PLAN, folder, validation=VALIDATION)
    return {
        "losses": [event["loss"] for event in result.history],
        "tokens": result.tokens,
        "supervised": result.supervised_tokens,
        "best": result.best_step,
        "weights": weights(model),
    }


def two_processes(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes that train together ended with."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(port), str(folder)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed training")
def test_two_processes_give_the_losses_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_LOG_SECONDS", 0.0)
    alone = trained(tmp_path / "one")
    first, second = two_processes(tmp_path / "two")
    assert len(alone["losses"]) == 12  # nine steps and three validations
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    assert second["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    for key in ("tokens", "supervised", "best"):
        assert first[key] == second[key] == alone[key], key
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-5, atol=1e-8)
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    steps = sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir())
    assert steps == ["best", "step-0000006", "step-0000009"]
    kept = json.loads((tmp_path / "two" / "checkpoints" / "step-0000009" / "progress.json").read_text())
    assert kept["tokens"] == alone["tokens"]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), count=st.integers(1, 5))
def test_shares_are_a_partition_of_about_equal_size(lengths, count):
    rows = ragged_samples(tuple(lengths))
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for rank in range(count):
            patch.setattr(processes, "count", lambda: count)
            patch.setattr(processes.dist, "get_rank", lambda rank=rank: rank)
            shares.append(list(processes.share(rows)))
    assert sorted(s.example_id for share in shares for s in share) == sorted(s.example_id for s in rows)
    sizes = [sum(len(s.ids) for s in share) for share in shares]
    assert max(sizes) - min(sizes) <= max(lengths)


def test_one_process_alone_is_not_disturbed():
    rows = ragged_samples()
    assert processes.count() == 1 and processes.first()
    assert processes.share(rows) is rows
    gradient = torch.nn.Parameter(torch.ones(2))
    assert processes.sum_gradients([gradient], 0.5, 7) == (0.5, 7) and gradient.grad is None
    processes.wait()
