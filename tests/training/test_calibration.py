"""Measured once, kept by what it depends on, and put together to the time of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import build, ragged_samples
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.training import calibration
from tunesmith.training.calibration import (
    Calibration,
    cache_folder,
    calibrate,
    forecast_time,
    known_calibration,
    known_gemm_rate,
    measured_gemm_rate,
    measured_rates,
    training_key,
)
from tunesmith.training.objectives import cross_entropy
from tunesmith.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=6, batch_size=4, learning_rate=1e-3, seed=0, evaluate_every=4)
ROWS = ragged_samples((30, 50, 40, 20, 60, 45, 35, 25, 55, 10, 33, 44), seed=3)
MEASURED = Calibration(0.01, 0.001, 0.1, 0.0004, 0.5, "2026-01-01T00:00:00+00:00")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lora(rank: int = 4) -> LanguageModel:
    model = build("llama")
    attach_lora(model, LoraSettings(rank, 8), seed=0)
    return LanguageModel(model)


def test_a_few_micro_batches_are_measured_and_nothing_is_learnt(own_cache: Path) -> None:
    model = lora()
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    answered: list[int] = []
    measured = calibrate(model, ROWS, PLAN, answer=lambda: answered.append(1) or 8)  # type: ignore[func-returns-value]
    assert measured.per_token > 0 and measured.per_micro_batch >= 0 and measured.per_step > 0
    assert measured.forward_per_token > 0
    assert answered == [1] and measured.per_answer is not None and measured.per_answer >= 0
    assert all(torch.equal(p, before[name]) for name, p in model.model.named_parameters())
    assert all(p.grad is None or not p.grad.any() for p in model.model.parameters())
    assert (own_cache / "calibration.json").is_file()


def test_what_is_known_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora()
    assert known_calibration(model, ROWS, PLAN) is None
    first = calibrate(model, ROWS, PLAN)

    def never(*arguments: object) -> Calibration:
        raise AssertionError("measured again")

    monkeypatch.setattr(calibration, "_measure", never)
    assert calibrate(lora(), ROWS, PLAN) == known_calibration(lora(), ROWS, PLAN) == first
    with pytest.raises(AssertionError, match="measured again"):
        calibrate(model, ROWS, PLAN, fresh=True)
    with pytest.raises(AssertionError, match="measured again"):  # answers were not measured
        calibrate(model, ROWS, PLAN, answer=lambda: 1)


def test_what_changes_the_speed_changes_the_key() -> None:
    model = lora()
    keys = {
        training_key(model, ROWS, PLAN, cross_entropy),
        training_key(lora(rank=8), ROWS, PLAN, cross_entropy),
        training_key(model, ROWS, replace(PLAN, micro_batch_tokens=64), cross_entropy),
        training_key(model, ROWS, replace(PLAN, recompute_layers=(0,)), cross_entropy),
        training_key(model, ROWS, replace(PLAN, precision="bf16"), cross_entropy),
        training_key(model, ragged_samples((300,) * 5), PLAN, cross_entropy),
    }
    assert len(keys) == 6
    assert training_key(model, ROWS, replace(PLAN, learning_rate=1.0, steps=99), cross_entropy) in keys


def test_a_damaged_file_is_measured_anew(own_cache: Path) -> None:
    own_cache.mkdir()
    (own_cache / "calibration.json").write_text("{")
    assert known_gemm_rate("fp32") is None
    rate = measured_gemm_rate("fp32")
    assert json.loads((own_cache / "calibration.json").read_text()) and known_gemm_rate("fp32") == rate > 1e8


def test_rates_are_kept_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        calibration, "_time_products", lambda name, *_: float(len(asked) + 1) + bool(asked.append(name))
    )
    assert measured_rates("cpu") == measured_rates("cpu") == {"fp32": 1.0, "bf16": 2.0}
    assert asked == ["fp32", "bf16"]


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "tunesmith"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tunesmith"


def test_time_is_the_sum_of_its_parts() -> None:
    rows = ragged_samples((10,) * 12, seed=1)
    rows = [replace(row, weights=row.weights + 1) for row in rows]  # all are learnt
    plan = replace(PLAN, steps=6, batch_size=4, micro_batch_tokens=20)
    forecast = forecast_time(MEASURED, rows, plan, validation_tokens=500, answered_rows=3)
    assert forecast.tokens == 6 * 40
    assert forecast.training_seconds == pytest.approx(6 * (2 * 0.01 + 40 * 0.001 + 0.1))
    assert forecast.validation_seconds == pytest.approx(2 * 500 * 0.0004)  # after steps 4 and 6
    assert forecast.answering_seconds == pytest.approx(2 * 3 * 0.5)
    assert forecast.seconds == pytest.approx(0.96 + 0.4 + 3.0)
    assert forecast.tokens_per_second == pytest.approx(240 / 0.96)


def test_without_evaluations_only_steps_take_time() -> None:
    forecast = forecast_time(MEASURED, ROWS, replace(PLAN, evaluate_every=0), validation_tokens=500, answered_rows=3)
    assert forecast.validation_seconds == forecast.answering_seconds == 0 < forecast.training_seconds


@pytest.mark.parametrize(
    ("points", "fixed", "slope"),
    [
        ([(100, 0.3), (400, 0.9), (100, 0.3), (400, 0.9)], 0.1, 0.002),
        ([(100, 0.2), (400, 0.8)], 0.0, 0.002),
        ([(100, 0.1), (400, 0.8)], 0.0, 0.002),  # a line that begins below zero
        ([(400, 0.8), (400, 0.9), (400, 0.7)], 0.0, 0.002),
        ([(100, 0.3), (100, 0.3), (100, 9.0), (400, 0.9), (400, 0.9), (400, 7.0)], 0.1, 0.002),
    ],
)
def test_a_line_through_medians(points: list[tuple[float, float]], fixed: float, slope: float) -> None:
    assert calibration._line(points) == pytest.approx((fixed, slope))
