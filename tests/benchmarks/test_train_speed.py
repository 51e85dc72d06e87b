"""The speed benchmark: same work on both sides, fair rows, honest arithmetic. Speed itself is never tested."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import train_speed

    return train_speed


def result(ends: list[float], tokens: list[int], **more: Any) -> dict[str, Any]:
    setting = {"trainer": "trl", "name": "x", "grouped": False}
    facts = {"peak_bytes": 300, "loaded_bytes": 100, "tensors_changed": [2, 2], "losses": [1.0], "grad_norms": [2.0]}
    return {"setting": setting, "ends": ends, "tokens": tokens, **facts, **more}


def test_rows_are_ragged_and_supervised_as_announced(bench: Any) -> None:
    rows = bench.make_rows(1600, 8192)
    lengths = [len(r.ids) for r in rows]
    padded = sum(8 * max(lengths[i : i + 8]) for i in range(0, 1600, 8))
    assert 0.67 < sum(lengths) / padded < 0.73
    assert 0.53 < sum(int((r.labels != -100).sum()) for r in rows) / sum(lengths) < 0.57
    assert 115 < np.median(lengths) < 125
    assert all(r.ids.min() >= 1 and r.ids.max() < 8192 and r.ids[-1] == 1 for r in rows)
    assert all(r.labels[0] == -100 and r.labels[-1] == 1 for r in rows)  # never the first token, always the end


def test_rows_depend_on_the_seed_alone(bench: Any) -> None:
    assert [r.key for r in bench.make_rows(9, 500)] == [r.key for r in bench.make_rows(9, 500)]
    assert [r.key for r in bench.make_rows(9, 500)] != [r.key for r in bench.make_rows(9, 500, seed=1)]
    assert len({r.key for r in bench.make_rows(400, 500)}) == 400  # the order of rows can be told by them


def test_both_sides_can_draw_the_same_first_adapter(bench: Any) -> None:
    import torch

    from train_speed_job import initial_adapter

    matrices = {name: torch.empty(2, width) for name, width in (("b", 9), ("a", 4))}
    first = dict(initial_adapter(matrices, seed=3))
    again = dict(initial_adapter(dict(reversed(matrices.items())), seed=3))
    assert all(torch.equal(first[name], again[name]) for name in ("a", "b"))
    assert first["b"].shape == (2, 9)
    assert 0.2 < float(first["b"].abs().max()) <= 1 / 3  # uniform up to 1/sqrt(width)


def test_every_candidate_setting_covers_the_step_exactly(bench: Any) -> None:
    for rows in (8, 16):
        for setting in bench.peer_settings(rows, wide=True):
            assert rows % setting.micro_batch == 0
            assert not (setting.candidate and (setting.grouped or setting.allocator or setting.trainer != "trl"))
        assert {s.micro_batch for s in bench.peer_settings(rows, wide=True) if s.candidate} >= {1, rows}


def test_warm_up_steps_are_not_timed(bench: Any) -> None:
    slow_start = result(ends=[50.0, 60.0, 70.0, 71.0, 73.0], tokens=[9999, 9999, 9999, 100, 200])
    assert bench.speed(slow_start) == pytest.approx(300 / 3)


def test_summary_takes_medians_and_the_worst_difference(bench: Any) -> None:
    ends = {rate: [0.0, 0.0, 0.0, 100 / rate] for rate in (10, 20, 40)}
    ours = [result(ends[10], [1, 1, 1, 100], losses=[2.0, 4.0], grad_norms=[1.0, 1.0]) for _ in ends]
    peer = [result(ends[rate], [1, 1, 1, 100], losses=[2.0, 4.0], grad_norms=[1.0, 1.0]) for rate in ends]
    peer[1]["losses"], peer[2]["grad_norms"] = [2.0, 5.0], [0.5, 1.0]
    line = bench.summary(peer, ours)
    assert line["tokens_per_second"] == [20, 10, 40]
    assert line["above_loaded_bytes"] == 200
    assert line["loss_difference"] == pytest.approx(0.2)
    assert line["grad_norm_difference"] == pytest.approx(1.0)


def test_steps_that_were_not_recorded_are_noticed(bench: Any) -> None:
    from train_speed_job import Recorder

    recorder = Recorder()
    recorder.losses, recorder.grad_norms, recorder.ends = [1.0, 2.0], [1.0, 2.0], [0.1, 0.2]
    assert recorder.measures(2)["losses"] == [1.0, 2.0]
    with pytest.raises(SystemExit, match="of 3 steps"):
        recorder.measures(3)


def test_wrong_options_are_refused(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--shapes", "9M"], ["--steps", "3"], ["--rows", "6"]):
        with pytest.raises(SystemExit):
            bench.parse(wrong)
    assert "there are 8M, 135M" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_both_trainers_compute_the_same(method: str, tmp_path: Path) -> None:
    for name in ("trl", "datasets", "accelerate"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; the extra `bench` has it")
    out = tmp_path / "quick.json"
    command = [sys.executable, str(BENCHMARKS / "train_speed.py"), "--quick", "--method", method, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (one,) = json.loads(out.read_text())["comparisons"]
    ours, peer = one["raw"]["rounds"][0]
    assert ours["setting"]["trainer"] == "tunesmith" and peer["setting"]["trainer"] == "trl"
    for name in ("losses", "grad_norms"):
        assert len(ours[name]) == 5
        np.testing.assert_allclose(ours[name], peer[name], rtol=1e-3)
        assert min(ours[name]) > 0.01  # a gradient that is zero on both sides would agree, too
    assert len(set(ours["losses"])) == 5
    assert ours["tokens"] == peer["tokens"]
    assert ours["tensors_changed"] == peer["tensors_changed"]
    changed, there = ours["tensors_changed"]
    assert changed == there > 50
    assert one["headline"]["same_work"]
