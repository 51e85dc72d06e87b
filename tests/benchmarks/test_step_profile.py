"""The step profile: every operation is counted once, as what it is, and the shares are of the whole step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step_profile

    return step_profile


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::mm", "matrix products"),
        ("C: attend_documents_backward", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::bmm", "attention"),
        ("C: rms_norm", "pointwise"),
        ("aten::mul", "pointwise"),
        ("_AttentionOutputBackward", "other"),
    ],
)
def test_operations_are_told_by_their_names(bench: Any, name: str, kind: str) -> None:
    assert bench.kind_of(name) == kind


def test_every_microsecond_is_counted_once(bench: Any) -> None:
    operations = [
        bench.Operation("aten::mm", 50.0),
        bench.Operation("aten::mm", 5.0, within=("step: clip",)),
        bench.Operation("step: clip", 1.0),
        bench.Operation("aten::sum", 2.0, within=("aten::mean", "step: step", "somewhere")),
        bench.Operation("C: swiglu", 10.0, within=("_AttentionOutput",)),
        bench.Operation("_AttentionOutput", 7.0),
    ]
    assert bench.divide(operations, wall_microseconds=100.0) == {
        "matrix products": 50.0,
        "attention": 0.0,
        "pointwise": 10.0,
        "optimiser": 8.0,
        "other": 32.0,  # what no operation accounts for, and the bookkeeping of autograd
    }


def test_shares_are_of_the_whole_step(bench: Any) -> None:
    spent = {"matrix products": 60.0, "attention": 20.0, "pointwise": 10.0, "optimiser": 4.0, "other": 6.0}
    result = {
        "seconds": [2.0, 2.0],
        "profiled_seconds": 2.2,
        "microseconds": spent,
        "needed_flops": [1e9, 3e9],
        "fused_layers": 8,
        "most": [],
    }
    line = bench.line(result, best=2e9)
    assert line["shares"]["optimiser"] == pytest.approx(0.04)
    assert line["matrix_share"] == pytest.approx(0.8)
    assert line["ceiling_share"] == pytest.approx(0.5)
    assert line["matrix_work_ceiling_share"] == pytest.approx(0.5 / 0.8)
    assert line["step_ms"] == pytest.approx(2000)


def test_only_a_whole_run_replaces_the_page(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.parse([]).table == BENCHMARKS / "step_profile.md"
    assert bench.parse(["--shapes", "8M"]).table is None
    with pytest.raises(SystemExit):
        bench.parse(["--methods", "dora"])
    assert "there are lora, full" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_is_divided_into_its_parts(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    options = ["--shapes", "8M", "--methods", "full", "--steps", "1", "--threads", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "step_profile.py"), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (one,) = json.loads(out.read_text())["profiles"]
    for form in ("fused", "plain"):
        shares = one[form]["shares"]
        assert sum(shares.values()) == pytest.approx(1)
        assert all(shares[kind] > 0 for kind in ("matrix products", "attention", "pointwise", "optimiser"))
        assert 0.2 < one[form]["matrix_share"] < 1
    assert (one["fused"]["fused_layers"], one["plain"]["fused_layers"]) == (8, 0)
    assert "| 8M | full | fused |" in done.stdout
