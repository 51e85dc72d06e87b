"""The speed benchmark: same work on both sides, fair rows, honest arithmetic. Speed itself is never tested."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
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


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What both sides share."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _training_work

    return _training_work


@pytest.fixture
def job_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is recorded of a side."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _train_speed_job

    return _train_speed_job


def case_of(bench: Any, workload: str, shape: str = "8M") -> Any:
    return next(case for case in bench.CASES if (case.workload, case.shape) == (workload, shape))


def result(ends: list[float], tokens: list[int], **more: Any) -> dict[str, Any]:
    """What a process tells of itself."""
    setting = {"trainer": "trl", "name": "8 x 1", "micro_batch": 8, "candidate": True, "grouped": False}
    losses, norms = [3.0 - 0.1 * i for i in range(len(ends))], [1.0 + i for i in range(len(ends))]
    return {
        "setting": setting,
        "ends": ends,
        "tokens": tokens,
        "examples": [8] * len(tokens),
        "peak_bytes": 300,
        "loaded_bytes": 100,
        "tensors_changed": [2, 2],
        "losses": losses,
        "grad_norms": norms,
        "facts": {},
        **more,
    }


def test_rows_are_ragged_and_supervised_as_announced(work: Any) -> None:
    rows = work.make_rows("chat", 1600, 8192)
    lengths = [len(r.ids) for r in rows]
    padded = sum(8 * max(lengths[i : i + 8]) for i in range(0, 1600, 8))
    assert 0.67 < sum(lengths) / padded < 0.73
    assert 0.53 < sum(int((r.labels != -100).sum()) for r in rows) / sum(lengths) < 0.57
    assert 115 < np.median(lengths) < 125
    assert all(r.ids.min() >= 1 and r.ids.max() < 8192 and r.ids[-1] == 1 for r in rows)
    assert all(r.labels[0] == -100 and r.labels[-1] == 1 for r in rows)  # never the first token, always the end


def test_rows_with_a_prefix_share_it_and_nothing_else(work: Any) -> None:
    rows = work.make_rows("prefix", 40, 8192)
    assert {len(r.ids) for r in rows} == {320}
    assert len({r.ids[:256].tobytes() for r in rows}) == 1
    assert len({r.ids[256:].tobytes() for r in rows}) == 40
    assert all(r.answer_at >= 256 and 0.5 < r.learnt / 64 < 0.6 for r in rows)


def test_rows_depend_on_the_seed_alone(work: Any) -> None:
    for kind in ("chat", "prefix"):
        keys = [r.key for r in work.make_rows(kind, 9, 500)]
        assert keys == [r.key for r in work.make_rows(kind, 9, 500)]
        assert keys != [r.key for r in work.make_rows(kind, 9, 500, seed=1)]
        assert len({r.key for r in work.make_rows(kind, 400, 500)}) == 400  # the order of rows can be told by them


def test_the_order_given_to_the_peer_is_that_of_our_loop(work: Any) -> None:
    from tunesmith.training.batching import RowOrder

    ours = RowOrder(rows=22, batch_size=8, seed=5)  # three steps an epoch, the last one short
    expected = [list(ours.of_step(step)) for step in range(8)]
    assert work.order_of(22, 8, 8, seed=5) == expected
    assert sorted(row for step in expected[:3] for row in step) == list(range(22))


def test_needed_arithmetic_counts_weights_tokens_and_pairs(work: Any) -> None:
    shape = work.Shape("tiny", vocabulary=50, hidden=8, layers=2, heads=2, kv_heads=1, intermediate=12)
    # q and o 8 x 8, k and v 8 x 4, three of 8 x 12; in each of two layers
    assert shape.linear_weights == 2 * (2 * 64 + 2 * 32 + 3 * 96)
    rows = [work.TokenRow(np.arange(10), 6), work.TokenRow(np.arange(3), 1)]
    attention = 6 * 2 * 8 * (100 + 9)
    per_pass = shape.linear_weights * 13 + 50 * 8 * (4 + 2)
    assert work.needed_flops(shape, rows, "lora") == 4 * per_pass + attention
    assert work.needed_flops(shape, rows, "full") == 6 * per_pass + attention


def test_both_sides_can_draw_the_same_first_adapter(work: Any) -> None:
    import torch

    matrices = {name: torch.empty(2, width) for name, width in (("b", 9), ("a", 4))}
    first = dict(work.initial_adapter(matrices, seed=3))
    again = dict(work.initial_adapter(dict(reversed(matrices.items())), seed=3))
    assert all(torch.equal(first[name], again[name]) for name in ("a", "b"))
    assert first["b"].shape == (2, 9)
    assert 0.2 < float(first["b"].abs().max()) <= 1 / 3  # uniform up to 1/sqrt(width)


def test_every_row_of_the_issue_is_measured_as_it_asks(bench: Any) -> None:
    asked = {(c.workload, c.shape): (c.bar, c.goal, c.memory) for c in bench.CASES}
    assert asked == {
        ("lora", "8M"): (2.5, 4.0, 0.6),
        ("lora", "135M"): (1.8, 2.4, 0.6),
        ("full", "8M"): (1.8, 3.0, 0.6),
        ("full", "135M"): (1.5, 1.9, 0.6),
        ("prefix", "8M"): (5.0, 8.0, None),
        ("last-layers", "8M"): (3.0, 4.5, None),
    }
    assert case_of(bench, "prefix").unit == "examples" and case_of(bench, "prefix").rows == 16
    last = case_of(bench, "last-layers")
    assert last.warmup == last.epoch_steps > 0  # timed from the second epoch on
    assert last.sweep_steps > last.warmup
    assert bench.WORKLOADS[-1] == "startup"


def test_every_candidate_setting_covers_the_step_exactly(bench: Any) -> None:
    for case in bench.CASES:
        settings = bench.peer_settings(case, every=True)
        for setting in settings:
            assert case.rows % setting.micro_batch == 0
            assert not (setting.candidate and (setting.grouped or setting.allocator or setting.trainer != "trl"))
        padded = {s.micro_batch for s in settings if s.candidate and not s.padding_free}
        free = {s.micro_batch for s in settings if s.candidate and s.padding_free}
        assert case.rows in padded and len(padded) > 1
        assert bool(free) == (case.kind == "chat")
        assert len({s.name for s in settings if s.trainer == "trl"}) == sum(s.trainer == "trl" for s in settings)


def test_ways_of_waiting_keep_everything_else(bench: Any) -> None:
    (setting, *_) = bench.peer_settings(case_of(bench, "lora"), every=False)
    others = bench.waiting(setting)
    assert {s.wait_policy for s in others} == {"PASSIVE", "ACTIVE"}
    assert all(replace(s, name=setting.name, wait_policy="") == setting for s in others)


def test_a_job_survives_the_command_line(bench: Any, job_module: Any) -> None:
    case = case_of(bench, "last-layers")
    job = case.job(bench.OURS, Path("/model"), 18, exact_norms=True)
    assert job_module.Job.from_json(json.dumps(asdict(job))) == job
    assert (job.rows, job.rows_per_step, job.last_layers) == (48, 8, 3)  # six steps an epoch
    assert case_of(bench, "lora").job(bench.OURS, Path("/model"), 23, True).rows == 8 * 23  # every row once


def test_warm_up_steps_are_not_timed(bench: Any) -> None:
    case = case_of(bench, "lora")
    slow_start = result(ends=[50.0, 60.0, 70.0, 71.0, 73.0], tokens=[9999, 9999, 9999, 100, 200])
    assert bench.speed(slow_start, case) == pytest.approx(300 / 3)
    assert bench.speed(slow_start, replace(case, kind="prefix")) == pytest.approx(16 / 3)  # examples


def test_summary_takes_medians_and_the_worst_difference(bench: Any) -> None:
    ends = {rate: [0.0, 0.0, 0.0, 100 / rate] for rate in (10, 20, 40)}
    ours = [result(ends[10], [1, 1, 1, 100], losses=[2.0, 4.0], grad_norms=[1.0, 1.0]) for _ in ends]
    peer = [result(ends[rate], [1, 1, 1, 100], losses=[2.0, 4.0], grad_norms=[1.0, 1.0]) for rate in ends]
    peer[1]["losses"], peer[2]["grad_norms"] = [2.0, 5.0], [0.5, 1.0]
    line = bench.summary(peer, ours, case_of(bench, "lora"))
    assert line["speed"] == [20, 10, 40]
    assert line["above_loaded_bytes"] == 200
    assert line["loss_difference"] == pytest.approx(0.2)
    assert line["grad_norm_difference"] == pytest.approx(1.0)


def test_a_faster_setting_that_learns_something_else_is_no_peer(bench: Any) -> None:
    case = case_of(bench, "lora")
    ours = result([0.0, 1.0, 2.0, 3.0], [10] * 4)
    exact = result([0.0, 1.0, 2.0, 4.0], [10] * 4)
    other = result([0.0, 1.0, 2.0, 2.5], [10] * 4, losses=[9.0] * 4)
    informs = result([0.0, 1.0, 2.0, 2.1], [10] * 4)
    for one, name, candidate in ((exact, "exact", True), (other, "other", True), (informs, "informs", False)):
        one["setting"] = {"trainer": "trl", "name": name, "candidate": candidate}
    assert bench._best([ours | {"setting": asdict(bench.OURS)}, exact, other, informs], ours, case).name == "exact"


def test_work_is_the_same_only_if_every_tensor_moved(bench: Any) -> None:
    ours = result([1.0, 2.0], [1, 1])
    assert bench.same(result([5.0, 6.0], [1, 1]), ours)
    assert not bench.same(result([1.0, 2.0], [1, 1], tensors_changed=[1, 2]), ours)
    assert not bench.same(result([1.0, 2.0], [1, 1], grad_norms=[1.0, 2.01]), ours)
    assert not bench.same(result([1.0, 2.0], [1, 1], losses=[3.0, math.nan]), ours)


@pytest.mark.parametrize(
    ("ratio", "memory", "ceiling", "expected"),
    [
        (4.1, 0.5, 0.7, {"speed": "goal", "memory": "bar", "ceiling": "goal"}),
        (2.0, 0.6, 0.6, {"speed": "bar", "memory": "bar", "ceiling": "not reached"}),
        (1.7, 0.7, 0.7, {"speed": "not reached", "memory": "not reached", "ceiling": "goal"}),
    ],
)
def test_bars_and_goals_are_judged(
    bench: Any, ratio: float, memory: float, ceiling: float, expected: dict[str, str]
) -> None:
    headline = {"speed_ratio": ratio, "above_loaded_ratio": memory, "ceiling_share": ceiling}
    assert bench.reached(case_of(bench, "lora", "135M"), headline) == expected


def test_the_page_says_what_was_asked_and_reached(bench: Any) -> None:
    case = replace(case_of(bench, "lora"), steps=5)
    slow, quick = [0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 2.25, 2.5]
    ours = result(quick, [10] * 5, setting={**asdict(bench.OURS)}, peak_bytes=150)
    peer = result(slow, [10] * 5, setting={**asdict(bench.peer_settings(case, False)[3])})
    one = bench.report(case, [(ours, peer)], (ours, peer), [ours, peer], {"best": 1e12})
    assert one["headline"]["speed_ratio"] == pytest.approx(4.0)
    assert one["headline"]["above_loaded_ratio"] == pytest.approx(0.25)
    assert one["headline"]["reached"] == {"speed": "goal", "memory": "bar"}
    needed = one["headline"]["ceiling_share"] * 1e12 * 0.5  # two steps were timed, in half a second
    assert needed == pytest.approx(4 * one["headline"]["peer_ceiling_share"] * 1e12 * 0.5)
    starting = {
        "seconds": 7.0,
        "rounds": [7.0],
        "phases": {"train_step": 7.0},
        "first_on_a_machine": 9.0,
        "peer_seconds": 8.0,
        "peer_rounds": [8.0],
        "bar": 6.0,
        "goal": 3.0,
        "reached": "not reached",
    }
    names = ("torch", "transformers", "trl", "peft")
    facts = {"processor": "P", "threads": 2, "load_before": 0, "date": "2026-01-01", **dict.fromkeys(names, "1")}
    text = bench.page({"environment": facts, "comparisons": [one], "startup": starting, "minutes": 1})
    assert "| lora | 8M | **4.00x** (4.00 to 4.00) | 2.5x | 4x | goal reached | 0.25x (at most 0.6x: bar" in text
    assert "| startup | 8M | **7.0 s**, TRL 8.0 s | 6 s | 3 s | **not reached** |" in text
    assert "Both computed the same." in text
    assert "2 of 2" in text
    wrong = result(slow, [10] * 5, setting=peer["setting"], losses=[1.0] * 5)
    other = bench.report(case, [(ours, wrong)], (ours, wrong), [ours, wrong], {"best": 1e12})
    assert not other["headline"]["same_work"]


def test_steps_that_were_not_recorded_are_noticed(job_module: Any) -> None:
    record = job_module.Record()
    for loss in (1.0, 2.0):
        record.step(loss, 1.0)
        record.end()
    assert record.measures(2)["losses"] == [1.0, 2.0]
    assert record.peak_bytes > 1_000_000
    with pytest.raises(SystemExit, match="of 3 steps"):
        record.measures(3)


def test_time_spent_on_measuring_is_no_part_of_a_step(job_module: Any) -> None:
    record = job_module.Record()
    record.end()
    record.paused += 100.0
    record.end()
    assert -100.0 <= record.ends[1] - record.ends[0] < -99.0


def test_wrong_options_are_refused(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, message in (
        (["--shapes", "9M"], "there are 8M, 135M"),
        (["--workload", "qlora"], "there are lora, full, prefix, last-layers, startup"),
        (["--workload", "prefix", "--shapes", "135M"], "not measured with 135M"),
        (["--steps", "3"], "more than the 6"),
        (["--rows", "3"], "multiple of 2"),
    ):
        with pytest.raises(SystemExit):
            bench.parse(wrong)
        assert message in capsys.readouterr().err


def test_only_a_whole_run_replaces_the_page(bench: Any) -> None:
    assert bench.parse([]).table == BENCHMARKS / "train_speed.md"
    assert len(bench.parse([]).cases) == len(bench.CASES)
    assert bench.parse(["--shapes", "8M"]).table is None
    quick = bench.parse(["--quick"])
    assert quick.table is quick.out is None
    assert {(c.workload, c.shape) for c in quick.cases} == {
        (w, "8M") for w in ("lora", "full", "prefix", "last-layers")
    }


@pytest.mark.slow
def test_both_trainers_compute_the_same_in_every_workload(tmp_path: Path) -> None:
    for name in ("trl", "datasets", "accelerate"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; the extra `bench` has it")
    out = tmp_path / "quick.json"
    command = [sys.executable, str(BENCHMARKS / "train_speed.py"), "--quick", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    parity = {one["workload"]: one for one in json.loads(out.read_text())["parity"]}
    assert set(parity) == {"lora", "full", "prefix", "last-layers"}
    for workload, one in parity.items():
        ours, peer = one["raw"]["ours"], one["raw"]["peer"]
        assert ours["setting"]["trainer"] == "tunesmith" and peer["setting"]["trainer"] == "trl"
        for name in ("losses", "grad_norms"):
            assert len(ours[name]) == 5
            np.testing.assert_allclose(ours[name], peer[name], rtol=1e-4)
            assert min(ours[name]) > 0.01  # a gradient that is zero on both sides would agree, too
        assert len(set(ours["losses"])) == 5
        assert ours["tokens"] == peer["tokens"]
        assert ours["tensors_changed"] == peer["tensors_changed"]
        changed, there = ours["tensors_changed"]
        assert changed == there == {"lora": 112, "full": 74, "prefix": 112, "last-layers": 42}[workload]
        assert bool(ours["facts"]["trunk_cache_bytes"]) == (workload == "last-layers")
        assert one["same_work"]
