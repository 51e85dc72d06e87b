"""Which type to compute in, and the scale of fp16."""

from __future__ import annotations

import math

import pytest
import torch

from tunesmith.training.precision import LossScaler, choose_precision, may_pay


@pytest.mark.parametrize(
    ("device", "rates", "chosen"),
    [
        ("cpu", {"fp32": 100.0, "bf16": 22.0}, "fp32"),
        ("cpu", {"fp32": 100.0, "bf16": 149.0}, "fp32"),
        ("cpu", {"fp32": 100.0, "bf16": 400.0}, "bf16"),
        ("cpu", {"fp32": 100.0, "fp16": 900.0}, "fp32"),
        ("cuda", {"fp32": 50.0, "bf16": 650.0, "fp16": 660.0}, "bf16"),
        ("cuda", {"fp32": 8.0, "fp16": 60.0}, "fp16"),
        ("cuda", {"fp32": 8.0}, "fp32"),
    ],
)
def test_half_precision_must_be_worth_its_rounding(device: str, rates: dict[str, float], chosen: str) -> None:
    precision, reason = choose_precision(device, rates)
    assert precision == chosen
    assert reason


def test_the_reason_names_the_measured_gain() -> None:
    assert "4.0 times as fast" in choose_precision("cpu", {"fp32": 1.0, "bf16": 4.0})[1]
    assert "not worth" in choose_precision("cpu", {"fp32": 1.0, "bf16": 0.2})[1]


def test_the_scale_halves_where_gradients_overflow_and_grows_after_good_steps() -> None:
    scaler = LossScaler(scale=1024.0, interval=3)
    taken = [scaler.update(norm) for norm in (1.0, math.inf, 1.0, 1.0, math.nan, 2.0, 2.0, 2.0, 2.0)]
    assert taken == [True, False, True, True, False, True, True, True, True]
    assert scaler.scale == 1024 / 4 * 2  # halved twice, doubled after three in a row
    assert (scaler.skipped, scaler.good) == (2, 1)


def test_the_scale_stays_between_its_bounds() -> None:
    scaler = LossScaler(scale=2.0, interval=1, largest=8.0)
    for _ in range(5):
        scaler.update(1.0)
    assert scaler.scale == 8.0 and not scaler.exhausted
    for _ in range(5):
        scaler.update(math.inf)
    assert scaler.scale == 1.0 and scaler.exhausted
    scaler.update(1.0)
    assert not scaler.exhausted


def test_a_scaler_goes_on_from_its_state() -> None:
    one = LossScaler(interval=4)
    for norm in (1.0, math.inf, 1.0, 1.0, 1.0):
        one.update(norm)
    other = LossScaler(interval=4)
    other.load_state_dict(one.state_dict())
    assert [one.update(1.0), one.scale] == [other.update(1.0), other.scale]
    assert one == other


def test_half_precision_is_measured_only_where_it_could_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for tiles in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=tiles: there)
        assert may_pay("cpu") is tiles and may_pay("cuda")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert may_pay("cpu")
