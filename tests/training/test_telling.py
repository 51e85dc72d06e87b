"""What a training tells of every step: numbers of the step, of some validation rows, and of all of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.small import PLAN, ROWS, VALIDATION, tunable, weights
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.problems import InvalidRecipeError
from tunesmith.training.loop import train
from tunesmith.training.objectives.cross_entropy import counted_cross_entropy, cross_entropy
from tunesmith.training.step import loss_sums, mean_loss

TOLD = replace(PLAN, log_every=1, watch_every=2, watch_rows=3)


def told(folder: Any, plan: Any = TOLD, **more: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    train(tunable(), ROWS, plan, folder, validation=VALIDATION, listener=events.append, **more)
    return events


def test_every_step_is_told(tmp_path):
    steps = [event for event in told(tmp_path) if event["kind"] == "train_step"]
    assert [event["step"] for event in steps] == list(range(1, 10))
    assert all(event["loss"] == event["mean_loss"] for event in steps), "none stands for several"


def test_every_third_step_is_told(tmp_path):
    plan = replace(PLAN, log_every=4, evaluate_every=0)
    quick = [event["step"] for event in told(tmp_path, plan) if event["kind"] == "train_step"]
    assert {1, 4, 8, 9} <= set(quick)


def test_some_validation_rows_take_turns(tmp_path, monkeypatch):
    from tunesmith.training import loop

    measured: list[list[Any]] = []

    def seen(model: Any, rows: Any, *more: Any) -> Any:
        measured.append(list(rows))
        return loss_sums(model, rows, *more)

    monkeypatch.setattr(loop, "loss_sums", seen)
    events = told(tmp_path)
    watched = {event["step"]: event["watched_loss"] for event in events if "watched_loss" in event}
    assert sorted(watched) == [2, 4, 8], "at 6 all rows are measured, and so they are at 9"
    assert all(math.isfinite(loss) for loss in watched.values())
    some = [rows for rows in measured if len(rows) == 3]
    places = [[next(i for i, one in enumerate(VALIDATION) if one is row) for row in rows] for rows in some]
    assert places == [[0, 1, 2], [3, 0, 1], [1, 2, 3]]


def test_watching_changes_nothing_that_is_learnt(tmp_path):
    quiet, watched = tunable(dropout=0.1), tunable(dropout=0.1)
    train(quiet, ROWS, PLAN, tmp_path / "quiet", validation=VALIDATION)
    train(watched, ROWS, TOLD, tmp_path / "watched", validation=VALIDATION)
    assert all(torch.equal(a, b) for a, b in zip(weights(quiet).values(), weights(watched).values(), strict=True))


def test_without_validation_rows_nothing_is_watched(tmp_path):
    events: list[dict[str, Any]] = []
    train(tunable(), ROWS, TOLD, tmp_path, listener=events.append)
    assert not any("watched_loss" in event for event in events)


def test_token_accuracy_is_the_share_of_right_guesses():
    model = tunable()
    model.model.eval()
    right = total = 0.0
    with torch.no_grad():
        for row in VALIDATION:
            logits = model.model(input_ids=torch.tensor(row.ids)[None]).logits[0]
            for place in range(1, len(row.ids)):
                weight = float(row.weights[place])
                right += weight * float(logits[place - 1].argmax() == row.ids[place])
                total += weight
    found = loss_sums(model, VALIDATION, counted_cross_entropy)
    assert found.means()["token_accuracy"] == pytest.approx(right / total)
    assert found.mean == pytest.approx(mean_loss(model, VALIDATION, cross_entropy), rel=1e-6)


def test_counting_learns_the_same(tmp_path):
    plain, counted = tunable(), tunable()
    train(plain, ROWS, PLAN, tmp_path / "plain", objective=cross_entropy)
    train(counted, ROWS, PLAN, tmp_path / "counted", objective=counted_cross_entropy)
    for a, b in zip(weights(plain).values(), weights(counted).values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_accuracy_is_told_with_every_step_and_validation(tmp_path):
    events = told(tmp_path, objective=counted_cross_entropy)
    assert all(0 <= event["token_accuracy"] <= 1 for event in events if event["kind"] in ("train_step", "validation"))
    assert all("watched_token_accuracy" in event for event in events if "watched_loss" in event)


def recipe(**train_settings: Any) -> dict[str, Any]:
    return {"data": "rows.jsonl", "train": train_settings}


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"token_accuracy": True, "label_smoothing": 0.1}, "train.token_accuracy"),
        ({"token_accuracy": True, "z_loss": 0.1}, "train.token_accuracy"),
        ({"token_accuracy": True, "objective": "contrastive"}, "train.token_accuracy"),
        ({"loss_on": "test"}, "train.loss_on"),
        ({"loss_on": "test", "select_by": "last"}, "train.eval_rows"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRecipeError, match=where):
        parse_recipe(recipe(**settings))


def test_settings_that_do_not() -> None:
    spec = parse_recipe(recipe(loss_on="test", select_by="last", eval_rows=0, token_accuracy=True, log_every=1)).train
    assert (spec.loss_on, spec.select_by) == ("test", "last")
