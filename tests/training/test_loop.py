"""The training loop: what it learns, when it stops, and that an interruption changes no bit."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.small import PLAN, ROWS, VALIDATION, tunable, weights
from tunesmith.errors import DataError, EngineError, RecipeError, ResourceError
from tunesmith.models import fused_layers
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import trainable_parameters
from tunesmith.text.types import Sample
from tunesmith.training import checkpoint, loop, resources
from tunesmith.training.batching import Batch
from tunesmith.training.loop import TrainingResult, train
from tunesmith.training.objectives import LossSum, cross_entropy
from tunesmith.training.precision import LossScaler
from tunesmith.training.step import DivergenceError, accumulate_gradients, mean_loss


class StoppedError(Exception):
    """What a test interrupts a training with."""


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def facts(result: TrainingResult) -> dict[str, Any]:
    """What does not depend on clocks and memory."""
    timed = {"tokens_per_second", "seconds", "memory_bytes"}
    history = [{k: v for k, v in event.items() if k not in timed} for event in result.history]
    validations = [event for event in history if event["kind"] == "validation"]
    return {
        "steps": result.steps, "tokens": result.tokens, "supervised": result.supervised_tokens,
        "best": (result.best_step, result.best_value), "stopped": result.stopped_early, "validations": validations,
    }  # fmt: skip


def test_it_learns_and_tells(tmp_path):
    events: list[dict[str, Any]] = []
    model = tunable()
    before = mean_loss(model, ROWS)
    result = train(model, ROWS, replace(PLAN, steps=40, evaluate_every=10), tmp_path, listener=events.append)
    assert mean_loss(model, ROWS) < 0.8 * before
    assert [e["kind"] for e in events[:2]] == ["train_started", "train_step"]
    assert events[0] | {"steps": 40, "rows": 11, "resumed_at": 0} == events[0]
    assert events[0]["trainable"] == sum(w.numel() for w in weights(model).values()) < events[0]["parameters"]
    steps = [e for e in events if e["kind"] == "train_step"]
    assert steps[-1]["step"] == 40 and steps[-1]["epoch"] == 10.0
    assert all(np.isfinite(e["loss"]) and e["grad_norm"] > 0 and e["tokens_per_second"] > 0 for e in steps)
    assert list(result.history) == events[1:]
    assert not model.model.training
    assert result.seconds > 0 and result.peak_memory_bytes > 1_000_000


def test_tokens_are_counted_with_every_repetition(tmp_path):
    result = train(tunable(), ROWS, replace(PLAN, steps=8, evaluate_every=0), tmp_path)  # two epochs of four steps
    assert result.tokens == 2 * sum(len(s.ids) for s in ROWS if s.supervised)
    assert result.supervised_tokens == 2 * sum(s.supervised for s in ROWS)


def test_the_schedule_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_LOG_SECONDS", 0.0)
    result = train(tunable(), ROWS, PLAN, tmp_path)
    rates = [e["learning_rate"] for e in result.history if e["kind"] == "train_step"]
    assert rates == [PLAN.learning_rate_at(step) for step in range(9)]


def test_gradients_are_clipped_to_the_norm(tmp_path):
    model, limited = tunable(method="full"), tunable(method="full")
    plan = replace(PLAN, steps=1, evaluate_every=0, warmup_steps=0)
    norms = []
    for m, limit in ((model, 0.0), (limited, 1e-3)):
        result = train(m, ROWS, replace(plan, max_grad_norm=limit), tmp_path / str(limit))
        norms.append(result.history[0]["grad_norm"])
    assert norms[0] == norms[1] > 1e-3  # told before clipping
    assert not same(weights(model), weights(limited))


def test_accumulation_is_weighted_by_token():
    """Two rows of very unequal weight: the mean is over tokens, not over rows or micro-batches."""
    rows = [Sample(np.arange(3, 23), np.r_[0, np.ones(19)].astype(np.float32), "long"),
            Sample(np.arange(30, 35), np.r_[np.zeros(4), 1].astype(np.float32), "short")]  # fmt: skip
    model = tunable(method="full")
    with torch.no_grad(), model.packed():
        from tunesmith.training.batching import collate

        sums = [model.loss_sum(b.ids, b.packing, b.weights, b.previous).item() for b in (collate([r]) for r in rows)]
    totals = accumulate_gradients(model, rows, replace(PLAN, micro_batch_tokens=1))
    loss = totals.read().mean
    assert loss == pytest.approx(sum(sums) / 20, rel=1e-5) and totals.tokens == totals.computed == 25
    assert totals.weight == 20.0
    assert loss != pytest.approx((sums[0] / 19 + sums[1]) / 2, rel=1e-3)
    assert mean_loss(model, rows) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("budget", [1, 25, 10_000])
def test_the_budget_changes_memory_and_not_the_training(tmp_path, budget):
    reference, model = tunable(), tunable()
    train(reference, ROWS, replace(PLAN, evaluate_every=0), tmp_path / "a")
    train(model, ROWS, replace(PLAN, evaluate_every=0, micro_batch_tokens=budget), tmp_path / "b")
    for name, w in weights(reference).items():
        torch.testing.assert_close(weights(model)[name], w, rtol=1e-3, atol=1e-4)


def test_equal_seeds_give_equal_bits_and_others_do_not(tmp_path):
    models = [tunable(), tunable(), tunable()]
    for i, (model, seed) in enumerate(zip(models, (4, 4, 5), strict=True)):
        train(model, ROWS, replace(PLAN, seed=seed), tmp_path / str(i))
    assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(models[2]))


def interrupting(at: int) -> Any:
    """A listener that interrupts as soon as it hears of a step."""

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "train_step" and event["step"] == at:
            raise StoppedError

    return listen


def scores() -> Iterator[float]:
    yield from (0.2, 0.5, 0.5, 0.4, 0.1, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("stops", [(1,), (4,), (5, 8), (3, 4, 7, 9)])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, monkeypatch, stops, dropout):
    monkeypatch.setattr(loop, "_LOG_SECONDS", 0.0)
    plan = replace(PLAN, checkpoint_seconds=0.0 if len(stops) == 2 else 60.0)
    whole = tunable(dropout)
    expected = train(whole, ROWS, plan, tmp_path / "whole", validation=VALIDATION)
    for stop in stops:
        with pytest.raises(StoppedError):
            train(tunable(dropout), ROWS, plan, tmp_path / "cut", validation=VALIDATION, listener=interrupting(stop))
        torch.rand(7)  # a new process has another random state
    again = tunable(dropout)
    events: list[dict[str, Any]] = []
    result = train(again, ROWS, plan, tmp_path / "cut", validation=VALIDATION, listener=events.append)
    assert same(weights(again), weights(whole))
    assert facts(result) == facts(expected)
    assert events[0]["resumed_at"] == {1: 0, 4: 3, 8: 7, 9: 6}[stops[-1]]


def test_interrupted_while_validating_and_while_saving(tmp_path, monkeypatch):
    whole = tunable()
    expected = train(whole, ROWS, PLAN, tmp_path / "whole", validation=VALIDATION)

    def in_validation() -> dict[str, float]:
        raise StoppedError

    with pytest.raises(StoppedError):
        train(tunable(), ROWS, PLAN, tmp_path / "cut", validation=VALIDATION, score=in_validation)

    def after_best(*_: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:  # the best weights are newer than the last checkpoint
        patch.setattr(checkpoint, "save_checkpoint", after_best)
        with pytest.raises(StoppedError):
            train(tunable(), ROWS, PLAN, tmp_path / "cut", validation=VALIDATION)
    again = tunable()
    assert facts(train(again, ROWS, PLAN, tmp_path / "cut", validation=VALIDATION)) == facts(expected)
    assert same(weights(again), weights(whole))


def test_a_finished_training_is_not_repeated(tmp_path):
    first, again = tunable(), tunable()
    one = train(first, ROWS, PLAN, tmp_path, validation=VALIDATION)
    two = train(again, ROWS, PLAN, tmp_path, validation=VALIDATION)
    assert same(weights(first), weights(again))
    assert one.seconds == two.seconds and facts(one) == facts(two)


def test_the_best_weights_remain(tmp_path):
    """By a metric that is best at the second evaluation, a tie broken by validation loss."""
    values = scores()
    kept: list[dict[str, torch.Tensor]] = []
    model = tunable()
    plan = replace(PLAN, select_by="metric", metric="accuracy")

    def score() -> dict[str, float]:
        assert not model.model.training
        kept.append(weights(model))
        return {"accuracy": next(values)}

    result = train(model, ROWS, plan, tmp_path, validation=VALIDATION, score=score)
    losses = [e["loss"] for e in result.history if e["kind"] == "validation"]
    assert len(losses) == 3 and result.best_value == 0.5
    best = 2 if losses[2] < losses[1] else 1
    assert result.best_step == 3 * (best + 1)
    assert same(weights(model), kept[best])
    assert [e["best"] for e in result.history if e["kind"] == "validation"] == [True, True, best == 2]


def test_the_best_weights_by_loss(tmp_path):
    model = tunable(method="full")
    plan = replace(PLAN, steps=60, evaluate_every=6, learning_rate=0.05, schedule="constant")
    result = train(model, ROWS[:3], plan, tmp_path, validation=VALIDATION)
    losses = {e["step"]: e["loss"] for e in result.history if e["kind"] == "validation"}
    best = min(losses, key=lambda step: losses[step])
    assert result.best_step == best < 60, "the learning rate must be so high that the last weights are not the best"
    assert result.best_value == -losses[best]
    assert mean_loss(model, VALIDATION) == pytest.approx(losses[best])


def test_early_stopping_and_its_continuation(tmp_path):
    plan = replace(PLAN, steps=30, select_by="metric", metric="accuracy", patience=2, evaluate_every=3)
    values = scores()
    result = train(tunable(), ROWS, plan, tmp_path, score=lambda: {"accuracy": next(values)})
    assert result.stopped_early and result.steps == 12 and result.best_step == 6 and result.best_value == 0.5
    again = train(tunable(), ROWS, plan, tmp_path, score=lambda: {"accuracy": 1.0})
    assert again.steps == 12 and again.stopped_early


def test_without_anything_measured_patience_is_not_lost(tmp_path):
    result = train(tunable(), ROWS, replace(PLAN, steps=12, patience=2, evaluate_every=2), tmp_path)
    assert result.steps == 12 and not result.stopped_early and result.best_step is None
    assert all(e["loss"] is None for e in result.history if e["kind"] == "validation")


def test_a_metric_that_is_not_measured_leaves_the_choice_to_the_loss(tmp_path):
    plan = replace(PLAN, select_by="metric", metric="accuracy")
    result = train(tunable(), ROWS, plan, tmp_path, validation=VALIDATION)
    losses = {e["step"]: e["loss"] for e in result.history if e["kind"] == "validation"}
    assert result.best_value == -min(losses.values())


def test_divergence_names_step_and_rows_and_keeps_the_state_before_it(tmp_path):
    model = tunable(method="full")

    def poison(event: dict[str, Any]) -> None:
        if event["kind"] == "train_step" and event["step"] == 3:
            with torch.no_grad():
                next(model.model.parameters())[5:] = float("inf")

    plan = replace(PLAN, evaluate_every=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_LOG_SECONDS", 0.0)
        with pytest.raises(DivergenceError, match=r"step 4, rows whose own loss is not finite: row \d+") as caught:
            train(model, ROWS, plan, tmp_path, listener=poison)
    assert caught.value.exit_code == 5 and "train.learning_rate" in str(caught.value.fix)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000003"]


def test_a_row_that_is_not_finite_is_found_among_others(tmp_path):
    bad = Sample(ROWS[0].ids, np.where(ROWS[0].weights > 0, np.nan, 0).astype(np.float32), "the bad one")
    plan = replace(PLAN, batch_size=12, evaluate_every=0)
    model = tunable()
    before = weights(model)
    with pytest.raises(DivergenceError, match="step 1, rows whose own loss is not finite: the bad one:"):
        train(model, [*ROWS, bad], plan, tmp_path)
    assert same(weights(model), before)


def test_too_little_memory_halves_the_streams_and_changes_nothing_else(tmp_path, monkeypatch):
    from tunesmith.training import step

    reference, model = tunable(), tunable()
    plan = replace(PLAN, evaluate_every=0, micro_batch_tokens=1_000)
    train(reference, ROWS, plan, tmp_path / "a")
    whole = step.accumulate_gradients

    def small_machine(model: Any, rows: Any, plan: Any, objective: Any, streams: int, *more: Any) -> Any:
        totals = whole(model, rows, plan, objective, streams, *more)  # gradients are there when memory ends
        if streams > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return totals

    monkeypatch.setattr(step, "accumulate_gradients", small_machine)
    events: list[dict[str, Any]] = []
    train(model, ROWS, plan, tmp_path / "b", listener=events.append)
    assert [e["micro_batch_tokens"] for e in events if e["kind"] == "out_of_memory"] == [500, 250]
    assert (
        checkpoint.Progress(**json.loads(next((tmp_path / "b").glob("step-*/progress.json")).read_text())).streams
        == 250
    )
    for name, w in weights(reference).items():
        torch.testing.assert_close(weights(model)[name], w, rtol=1e-3, atol=1e-4)


def test_memory_that_does_not_suffice_for_anything_is_an_error(tmp_path, monkeypatch):
    from tunesmith.training import step

    def no_memory(*_: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 12 bytes")

    monkeypatch.setattr(step, "accumulate_gradients", no_memory)
    with pytest.raises(ResourceError, match="not enough memory for a single short document"):
        train(tunable(), ROWS, PLAN, tmp_path)


def test_steps_without_anything_to_learn_change_nothing(tmp_path):
    silent = [Sample(s.ids, np.zeros_like(s.weights), s.example_id) for s in ROWS[:3]]
    model = tunable()
    plan = replace(PLAN, steps=4, shuffle=False, evaluate_every=0, weight_decay=0.5)
    before: list[dict[str, torch.Tensor]] = []
    # Steps 0 and 2 are silent, 1 and 3 are not.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_LOG_SECONDS", 0.0)
        result = train(model, [*silent, *ROWS[:3]], plan, tmp_path, listener=lambda e: before.append(weights(model)))
    assert same(before[0], before[1]) and not same(before[1], before[2]) and same(before[2], before[3])
    losses = [e["loss"] for e in result.history]
    assert losses[0] == losses[2] == 0.0 and losses[1] > 0
    assert result.tokens == 2 * sum(len(s.ids) for s in ROWS[:3] if s.supervised)


def test_rows_that_teach_nothing_at_all_are_an_error(tmp_path):
    silent = [Sample(s.ids, np.zeros_like(s.weights), s.example_id) for s in ROWS]
    with pytest.raises(DataError, match="no row has anything to learn"):
        train(tunable(), silent, PLAN, tmp_path)
    with pytest.raises(DataError):
        train(tunable(), [], PLAN, tmp_path)


def test_many_silent_rows_before_the_first_that_teaches(tmp_path):
    silent = Sample(ROWS[0].ids, np.zeros_like(ROWS[0].weights))
    result = train(tunable(), [silent] * 10_001 + ROWS, replace(PLAN, steps=1), tmp_path)
    assert result.steps == 1


def test_a_full_disk_stops_it_and_the_next_command_goes_on(tmp_path, monkeypatch):
    whole = tunable()
    expected = train(whole, ROWS, PLAN, tmp_path / "whole", validation=VALIDATION)
    from tunesmith.runs import atomic

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(event: dict[str, Any]) -> None:
        if event["kind"] == "validation" and event["step"] == 6:
            patch.setattr(atomic.os, "fsync", full)

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="no space left"):
        train(tunable(), ROWS, PLAN, tmp_path / "cut", validation=VALIDATION, listener=fill)
    assert [p.name for p in checkpoint._steps(tmp_path / "cut")] == ["step-0000003"]
    again = tunable()
    result = train(again, ROWS, PLAN, tmp_path / "cut", validation=VALIDATION)
    assert same(weights(again), weights(whole)) and facts(result) == facts(expected)


def test_bf16_autocast_trains(tmp_path):
    model = tunable()
    before = mean_loss(model, ROWS)
    train(model, ROWS, replace(PLAN, steps=30, precision="bf16", evaluate_every=0), tmp_path)
    assert mean_loss(model, ROWS) < 0.95 * before
    assert all(p.dtype == torch.float32 for p in trainable_parameters(model.model).values())


def test_an_objective_of_ones_own(tmp_path):
    """An objective is a function of model and batch; here the loss counts half, and so does its gradient's norm."""
    norms = []
    for i, factor in enumerate((1.0, 0.5)):

        def objective(model: LanguageModel, batch: Batch, factor: float = factor) -> LossSum:
            said = cross_entropy(model, batch)
            return LossSum(factor * said.loss, said.weight)

        plan = replace(PLAN, steps=1, evaluate_every=0)
        result = train(tunable(), ROWS, plan, tmp_path / str(i), objective=objective)
        norms.append((result.history[0]["loss"], result.history[0]["grad_norm"]))
    assert norms[0] == pytest.approx([2 * n for n in norms[1]], rel=1e-5)


@pytest.mark.parametrize(
    "changes", [{"recompute_layers": (0, 1)}, {"optimizer_in_backward": True}, {"precision": "bf16"}]
)
def test_ways_to_need_less_change_nothing_or_little(tmp_path, changes, monkeypatch):
    monkeypatch.setattr(loop, "_LOG_SECONDS", 0.0)  # every step is told of, however busy the machine is
    plan = replace(PLAN, evaluate_every=0, micro_batch_tokens=1_000, max_grad_norm=0.0)
    reference, model = tunable(method="full"), tunable(method="full")
    expected = train(reference, ROWS, plan, tmp_path / "a")
    found = train(model, ROWS, replace(plan, **changes), tmp_path / "b")
    if "recompute_layers" in changes:
        assert same(weights(model), weights(reference))
    tolerance = 0.05 if "precision" in changes else 1e-4
    losses = [[e["loss"] for e in r.history if e["kind"] == "train_step"] for r in (expected, found)]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


def test_the_update_within_the_backward_pass_says_what_it_cannot(tmp_path):
    plan = replace(PLAN, optimizer_in_backward=True)
    with pytest.raises(RecipeError, match="clipping by norm needs all gradients at once"):
        train(tunable(), ROWS, plan, tmp_path / "a")
    with pytest.raises(RecipeError, match="streams, and gradients are complete after the last"):
        train(tunable(), ROWS, replace(plan, max_grad_norm=0.0, micro_batch_tokens=5), tmp_path / "b")


def test_a_scale_that_is_too_large_for_fp16_leaves_steps_out_and_is_halved(tmp_path):
    model = tunable()
    plan = replace(PLAN, evaluate_every=0, precision="fp16", steps=6)
    before = mean_loss(model, ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_LOG_SECONDS", 0.0)
        patch.setattr("tunesmith.training.step.LossScaler", lambda: LossScaler(scale=2.0**24))
        result = train(model, ROWS, replace(plan, steps=30), tmp_path)
    kept = json.loads(next(tmp_path.glob("step-*30/progress.json")).read_text())["scaler"]
    left_out = [e for e in result.history if e["grad_norm"] == 0.0]
    assert 1 <= kept["skipped"] <= len(left_out) <= kept["skipped"] + 4
    assert kept["scale"] == 2.0 ** (24 - kept["skipped"])
    assert mean_loss(model, ROWS) < before


def test_above_its_memory_limit_freed_memory_goes_back_after_every_step(tmp_path, monkeypatch):
    given: list[int] = []
    monkeypatch.setattr(resources, "release_freed_memory", lambda: given.append(1))
    monkeypatch.setattr(resources, "_glibc", lambda: None)
    plan = replace(PLAN, evaluate_every=0)
    train(tunable(), ROWS, plan, tmp_path / "elsewhere", memory_limit=1)
    assert not given  # where the heap cannot be asked to shrink
    monkeypatch.undo()
    monkeypatch.setattr(resources, "release_freed_memory", lambda: given.append(1))
    monkeypatch.setattr(resources, "_glibc", lambda: object())
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: None)
    train(tunable(), ROWS, plan, tmp_path / "none")
    train(tunable(), ROWS, plan, tmp_path / "far", memory_limit=1 << 50)
    assert not given
    limited = tunable()
    train(limited, ROWS, plan, tmp_path / "above", memory_limit=1)
    assert len(given) == plan.steps


def test_one_look_before_the_first_step_finds_fused_layers_that_are_wrong(tmp_path, monkeypatch):
    """Its plain side is short enough to be computed by the layers of `transformers`, so it proves both at once."""
    model = tunable()
    assert fused_layers.use_fused_layers(model.model)
    right = fused_layers.attention_output
    monkeypatch.setattr(fused_layers, "attention_output", lambda *given: 1.01 * right(*given))
    with pytest.raises(EngineError, match="logits of the packed computation differ"):
        train(model, ROWS, PLAN, tmp_path)
    assert not list(tmp_path.iterdir())
