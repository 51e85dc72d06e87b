"""MFU: needed arithmetic over a rate that is read where it is known, and measured late where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import build, ragged_samples
from tunesmith.text.types import Group
from tunesmith.training import utilisation
from tunesmith.training.calibration import known_gemm_rate
from tunesmith.training.flops import needed_flops
from tunesmith.training.utilisation import Utilisation

ROWS = ragged_samples((9, 14, 6))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))


def test_nothing_is_measured_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(precision: str, device: object) -> float:
        measured.append(precision)
        return 2e9

    monkeypatch.setattr(utilisation, "measured_gemm_rate", measure)
    model = build("llama")
    use = Utilisation(model, ROWS, "fp32")
    assert use.of(100.0) == {} and not measured
    use.measure()
    use.measure()
    assert measured == ["fp32"]
    needed = needed_flops(model, [9, 14, 6], sum(row.supervised for row in ROWS)) / 29
    assert use.of(100.0) == {"mfu": pytest.approx(100 * needed / 2e9)}


def test_a_rate_that_this_machine_knows_is_read() -> None:
    first = Utilisation(build("llama"), ROWS, "fp32")
    assert first.rate is None
    first.measure()
    assert first.rate is not None and first.rate > 1e6
    assert known_gemm_rate("fp32") == first.rate == Utilisation(build("llama"), ROWS, "fp32").rate


def test_texts_of_a_pair_count_each() -> None:
    model = build("llama")
    pairs = [Group(tuple(ROWS[:2])), Group(tuple(ROWS[2:]))]
    assert Utilisation(model, pairs, "fp32").per_token == Utilisation(model, ROWS, "fp32").per_token
