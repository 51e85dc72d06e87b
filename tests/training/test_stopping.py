"""Stopping where somebody asked for it, and the weights of the ends of epochs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.small import PLAN, ROWS, VALIDATION, tunable, weights
from tunesmith.training import loop
from tunesmith.training.checkpoint import kept_weights
from tunesmith.training.loop import StopRequested, train

TIMED = {"tokens_per_second", "seconds", "memory_bytes"}


def untimed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k not in TIMED} for e in events if e["kind"] != "train_started"]


@pytest.fixture(autouse=True)
def _every_step_is_told(monkeypatch):
    monkeypatch.setattr(loop, "_LOG_SECONDS", 0.0)


def test_a_stop_at_any_step_loses_and_doubles_nothing(tmp_path):
    whole: list[dict[str, Any]] = []
    model = tunable()
    expected = train(model, ROWS, PLAN, tmp_path / "whole", validation=VALIDATION, listener=whole.append)
    for step in (1, 3, 5, 9):  # 3 and 9 are evaluated, 9 is the last one
        heard: list[dict[str, Any]] = []

        def stop(event: dict[str, Any], heard: list[dict[str, Any]] = heard, step: int = step) -> None:
            heard.append(event)
            if event["kind"] == "train_step" and event["step"] == step:
                raise StopRequested

        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(StopRequested):
            train(tunable(), ROWS, PLAN, folder, validation=VALIDATION, listener=stop)
        assert max(kept_weights(folder, epochs=False)) == step
        stopped = tunable()
        result = train(stopped, ROWS, PLAN, folder, validation=VALIDATION, listener=heard.append)
        assert untimed(heard) == untimed(whole)
        assert untimed(list(result.history)) == untimed(list(expected.history))
        assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(model).values(), strict=True))


def test_a_stop_before_the_first_step_leaves_nothing(tmp_path):
    def stop(event: dict[str, Any]) -> None:
        raise StopRequested

    with pytest.raises(StopRequested):
        train(tunable(), ROWS, PLAN, tmp_path, listener=stop)
    assert not kept_weights(tmp_path, epochs=False)


def test_the_weights_of_the_last_ends_of_epochs_stay(tmp_path):
    plan = replace(PLAN, steps=12, evaluate_every=0, keep_epochs=2, keep_checkpoints=1, select_by="last")
    model = tunable()
    train(model, ROWS, plan, tmp_path)  # three epochs of four steps
    kept = kept_weights(tmp_path)
    assert list(kept) == [8, 12]
    last = load_file(kept[12])
    assert last.keys() == weights(model).keys()
    assert all(torch.equal(last[name], w) for name, w in weights(model).items())
    assert any(not torch.equal(load_file(kept[8])[name], w) for name, w in weights(model).items())
    assert list(kept_weights(tmp_path, epochs=False)) == [12]


def test_without_asking_no_epoch_is_kept(tmp_path):
    train(tunable(), ROWS, PLAN, tmp_path)
    assert not kept_weights(tmp_path)


def test_small_checkpoints_are_saved_often_and_costly_ones_seldom(tmp_path, monkeypatch):
    clock = iter(range(10_000))
    saved: list[int] = []
    plan = replace(PLAN, steps=40, evaluate_every=0, checkpoint_seconds=300.0, keep_checkpoints=1)

    def save(cost: int) -> None:
        def saving(folder: Any, progress: Any, *rest: Any) -> None:
            saved.append(progress.step)
            for _ in range(cost):
                next(clock)

        monkeypatch.setattr(loop.checkpoint, "save_checkpoint", saving)

    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))  # every look takes a second
    save(0)
    train(tunable(), ROWS, plan, tmp_path / "cheap")
    often, saved[:] = list(saved), []
    save(5)
    train(tunable(), ROWS, plan, tmp_path / "costly")
    assert len(often) > 2 * len(saved) >= 2 and often[-1] == saved[-1] == 40
