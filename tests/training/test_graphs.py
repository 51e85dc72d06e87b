"""Micro-batches in fixed shapes and as graphs: the same numbers, captured when they may, dropped when they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import build, ragged_samples
from tests.training.small import PLAN, VALIDATION, tunable, weights
from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import LoraSettings, attach_lora, trainable_parameters
from tunesmith.text.types import Sample
from tunesmith.training import graphs as module
from tunesmith.training.batching import collate
from tunesmith.training.graphs import MicroBatchGraphs, make_graphs, why_not
from tunesmith.training.loop import train
from tunesmith.training.objectives import cross_entropy
from tunesmith.training.optimizers import make_optimizer
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.step import DivergenceError, Stepper, accumulate_gradients

ROWS = ragged_samples((40, 3, 7, 12, 30, 20, 5, 9, 14, 6, 2, 33, 41, 28), seed=1)
STEPS = replace(PLAN, steps=12, cuda_graphs=True, micro_batch_tokens=64, evaluate_every=4)
Work = Callable[[], None]


class StandIn:
    """Captures on a CPU: what is captured is done when it is replayed, with what is in memory then."""

    def __init__(self) -> None:
        self.warmed = self.captures = 0

    def warm(self, work: Work) -> None:
        self.warmed += 1
        work()

    def capture(self, work: Work) -> Work:
        self.captures += 1
        return work


class Unfit(StandIn):
    """A device on which the computation cannot be captured."""

    def capture(self, work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Idle(StandIn):
    """A device whose graphs do nothing."""

    def capture(self, work: Work) -> Work:
        super().capture(work)
        return lambda: None


class Twice(StandIn):
    """A device whose graphs add each gradient twice."""

    def capture(self, work: Work) -> Work:
        super().capture(work)

        def replay() -> None:
            work()
            work()

        return replay


def language_model(family: str, method: str = "lora", dtype: torch.dtype = torch.float64) -> LanguageModel:
    model = build(family).to(dtype)
    if method == "lora":
        layers = attach_lora(model, LoraSettings(4, 8), seed=0).layers
        for layer in layers.values():  # at the start B is zero, and A has no gradient
            torch.nn.init.normal_(layer.lora_B, std=0.1)
    return LanguageModel(model.train())


def stepper(
    model: LanguageModel, device: StandIn | None, said: list[dict[str, Any]], plan: TrainingPlan = STEPS
) -> Stepper:
    optimizer = make_optimizer(trainable_parameters(model.model), plan, flat=True)
    graphs = None if device is None else MicroBatchGraphs(model, plan, 41, device, said.append)
    return Stepper(model, optimizer, plan, cross_entropy, said.append, graphs)


def gradients(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in trainable_parameters(model.model).items() if p.grad is not None}


def one_step(
    model: LanguageModel, device: StandIn | None, rows: list[Sample], times: int = 1
) -> tuple[float, dict[str, Any], Stepper]:
    """Loss and gradients of rows, the last of several times."""
    said: list[dict[str, Any]] = []
    mine = stepper(model, device, said)
    for _ in range(times):
        mine.optimizer.zero_grad()
        totals = accumulate_gradients(model, rows, STEPS, streams=64, graphs=mine.graphs).read()
    return totals.loss, gradients(model), mine


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gemma2", "gemma3", "gpt2"])
def test_filling_changes_no_loss_and_no_gradient(family, method):
    loss, plain, _ = one_step(language_model(family, method), None, ROWS)
    device = StandIn()
    filled, mine, used = one_step(language_model(family, method), device, ROWS, times=4)
    assert used.graphs is not None and used.graphs.replays and used.graphs.refused is None
    assert filled == pytest.approx(loss, rel=1e-12) and loss > 0
    assert mine.keys() == plain.keys()
    allowed = 1e-6 if family.startswith("gemma") else 1e-10  # Gemma sums gradients of its norms in fp32
    for name, gradient in plain.items():
        assert float((mine[name] - gradient).norm()) <= allowed * float(gradient.norm()), name
    if method == "full" and family == "qwen3":  # words that no row has: exactly nothing
        there = np.unique(np.concatenate([row.ids for row in ROWS]))
        missing = np.setdiff1d(np.arange(300), there)
        embeddings = mine["model.embed_tokens.weight"]
        assert len(missing) and embeddings[missing].eq(0).all() and embeddings[there].any()


def test_a_shape_is_warmed_up_then_captured_then_replayed():
    model, device = language_model("llama"), StandIn()
    graphs = MicroBatchGraphs(model, STEPS, 41, device, print, warm_ups=2)
    stepper(model, None, [])
    # Of one shape: alike in tokens, and about alike in what is learnt.
    batches = [collate([Sample(row.ids, np.r_[0, np.ones(29), 0 * row.ids[30:]].astype(np.float32), row.example_id)])
               for row in ragged_samples((30, 31, 32, 33), seed=8)]  # fmt: skip
    assert len(batches) >= 4
    counts = []
    with model.packed():
        for batch in batches[:4]:
            graphs.accumulate(batch, 64)
            counts.append((device.warmed, device.captures, graphs.replays))
    # The third batch is computed the ordinary way once more, to compare.
    assert counts == [(1, 0, 0), (2, 0, 0), (3, 1, 1), (3, 1, 2)]
    assert len(graphs.shapes) == graphs.captured == 1


def test_there_are_at_most_so_many_graphs_and_the_rest_is_computed_too():
    model, device = language_model("llama"), StandIn()
    optimizer = make_optimizer(trainable_parameters(model.model), STEPS, flat=True)
    graphs = MicroBatchGraphs(model, STEPS, 41, device, print, most=1, warm_ups=1)
    small, large = (collate([ragged_samples((20, n), seed=3)[1]]) for n in (30, 100))
    sums = []
    with model.packed():
        for batch in (small, large) * 3:
            optimizer.zero_grad()
            sums.append(float(graphs.accumulate(batch, 64).loss))
    assert len(graphs.shapes) == 2 and graphs.captured == device.captures == 1
    assert sums[0] == sums[2] == sums[4] and sums[1] == sums[3] == sums[5] and sums[0] != sums[1]


def test_gradients_that_moved_are_captured_again():
    model, device = language_model("llama"), StandIn()
    parameters = trainable_parameters(model.model)
    make_optimizer(parameters, STEPS, flat=True)
    graphs = MicroBatchGraphs(model, STEPS, 41, device, print, warm_ups=1)
    batch = collate(ROWS[:1])
    with model.packed():
        for _ in range(3):
            graphs.accumulate(batch, 64)
        assert graphs.captured == 1
        some = next(iter(parameters.values()))
        some.grad = torch.zeros_like(some)
        graphs.accumulate(batch, 64)
        assert graphs.captured == 0
        some.grad = None
        with pytest.raises(EngineError, match="stay in memory"):
            graphs.accumulate(batch, 64)


@pytest.mark.parametrize("device", [Unfit(), Idle(), Twice()], ids=["unfit", "idle", "twice"])
def test_what_cannot_be_captured_or_differs_is_computed_the_ordinary_way_and_said(device):
    said: list[dict[str, Any]] = []
    model = language_model("llama")
    graphs = MicroBatchGraphs(model, STEPS, 41, device, said.append)
    optimizer = make_optimizer(trainable_parameters(model.model), STEPS, flat=True)
    for _ in range(5):
        optimizer.zero_grad()
        loss = accumulate_gradients(model, ROWS, STEPS, streams=64, graphs=graphs).read().loss
    plain_loss, plain, _ = one_step(language_model("llama"), None, ROWS)
    assert loss == pytest.approx(plain_loss, rel=1e-12)
    for name, gradient in gradients(model).items():
        assert float((gradient - plain[name]).norm()) <= 1e-10 * float(plain[name].norm()), name
    assert graphs.captured == graphs.replays == 0 and graphs.refused
    assert [e["code"] for e in said] == ["cuda_graphs"] and "not used" in said[0]["text"]
    assert ("cannot be captured" if isinstance(device, Unfit) else "differs") in said[0]["text"]


def test_memory_that_ends_in_a_capture_halves_the_streams_and_captures_again():
    class Small(StandIn):
        failed = False

        def capture(self, work: Work) -> Work:
            if not self.failed:
                self.failed = True
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().capture(work)

    device, said = Small(), []
    model, other = language_model("llama"), language_model("llama")
    plan = replace(STEPS, micro_batch_tokens=256)
    mine, plain = stepper(model, device, said, plan), stepper(other, None, [], plan)
    for number in range(6):
        facts, theirs = mine.step(ROWS, number), plain.step(ROWS, number)
        assert facts.loss == pytest.approx(theirs.loss, rel=1e-10)
        assert facts.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-8)
    assert said == [{"kind": "out_of_memory", "micro_batch_tokens": 128}] and mine.streams == 128
    assert device.captures and mine.graphs is not None and mine.graphs.replays
    assert all(shape.tokens <= 128 for shape in mine.graphs.shapes)


def test_recomputed_layers_are_captured_too():
    plan = replace(STEPS, recompute_layers=(0, 1))
    model, other = language_model("llama"), language_model("llama")
    mine, plain = stepper(model, StandIn(), [], plan), stepper(other, None, [], plan)
    for number in range(4):
        assert mine.step(ROWS, number).grad_norm == pytest.approx(plain.step(ROWS, number).grad_norm, rel=1e-8)
    assert mine.graphs is not None and mine.graphs.replays


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"neftune_alpha": 5.0}, "noise"),
        ({"optimizer_in_backward": True}, "within the backward"),
        ({"share_prefixes": True}, "common beginnings"),
    ],
)
def test_trainings_that_have_no_graphs(change, said):
    assert said in (why_not(tunable(), replace(STEPS, **change), cross_entropy) or "")


def test_other_objectives_dropout_and_devices_have_none():
    assert "cross-entropy" in (why_not(tunable(), STEPS, lambda model, batch: cross_entropy(model, batch)) or "")
    assert "dropout" in (why_not(tunable(dropout=0.1), STEPS, cross_entropy) or "")
    assert why_not(tunable(), STEPS, cross_entropy) is None
    said: list[dict[str, Any]] = []
    assert make_graphs(tunable(), STEPS, cross_entropy, ROWS, said.append) is None
    assert len(said) == 1 and "none on cpu" in said[0]["text"]
    assert make_graphs(tunable(), replace(STEPS, cuda_graphs=False), cross_entropy, ROWS, said.append) is None
    assert len(said) == 1


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, monkeypatch):
    """Though what was captured before is not captured at the same steps again."""
    devices: list[StandIn] = []

    def device(of: torch.device) -> StandIn:
        devices.append(StandIn())
        return devices[-1]

    monkeypatch.setattr(module, "graph_device", device)

    def run(folder: Path, steps: int) -> dict[str, torch.Tensor]:
        model = tunable()
        train(model, ROWS, replace(STEPS, steps=steps), folder, validation=VALIDATION)
        return weights(model)

    whole = run(tmp_path / "whole", 12)
    assert devices[0].captures
    stopped = tunable()

    def stop(event: dict[str, Any]) -> None:
        if event["kind"] == "validation" and event["step"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, ROWS, STEPS, tmp_path / "parts", validation=VALIDATION, listener=stop)
    again = run(tmp_path / "parts", 12)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_reading_later_changes_no_bit(tmp_path):
    def run(every: int) -> tuple[dict[str, torch.Tensor], Any, list[float]]:
        model = tunable()
        plan = replace(PLAN, steps=11, read_every=every)
        result = train(model, ROWS, plan, tmp_path / str(every), validation=VALIDATION)
        losses = [e["loss"] for e in result.history if e["kind"] == "validation"]
        return weights(model), (result.steps, result.tokens, result.supervised_tokens, result.best_step), losses

    at_once, later = run(1), run(5)
    assert all(torch.equal(at_once[0][name], later[0][name]) for name in at_once[0])
    assert at_once[1:] == later[1:]


def test_a_loss_that_is_read_later_stops_at_its_own_step(tmp_path, monkeypatch):
    """The update is left out on the device, and so are those of the steps begun before anybody looked."""
    rows = [Sample(row.ids, row.weights, row.example_id) for row in ROWS]
    plan = replace(PLAN, steps=12, read_every=6, evaluate_every=0, batch_size=2, shuffle=False)
    good = tunable()
    train(good, rows, replace(plan, steps=12, schedule="constant"), tmp_path / "good")

    def poisoned(model: LanguageModel, batch: Any) -> Any:
        said = cross_entropy(model, batch)
        bad = any(row.example_id == "row 8" for row in batch.rows)
        return replace(said, loss=said.loss * float("nan")) if bad else said

    model = tunable()
    monkeypatch.setattr("tunesmith.training.loop._LOG_SECONDS", 1e9)
    with pytest.raises(DivergenceError) as caught:
        train(model, rows, replace(plan, schedule="constant"), tmp_path / "bad", objective=poisoned)
    assert caught.value.step == 5 and caught.value.rows == ("row 8",)
    before = tunable()
    train(before, rows, replace(plan, steps=4, schedule="constant", warmup_steps=plan.warmup_steps), tmp_path / "four")
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(before).values(), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_on_a_gpu_replays_equal_the_eager_step(method):
    plan = replace(STEPS, precision="bf16", micro_batch_tokens=128)

    def on_gpu() -> LanguageModel:
        model = language_model("llama", method, torch.float32)
        model.model.cuda()
        return model

    model, other, said = on_gpu(), on_gpu(), []
    graphs = make_graphs(model, plan, cross_entropy, ROWS, said.append)
    assert graphs is not None and said == []
    optimizers = [make_optimizer(trainable_parameters(m.model), plan, flat=True) for m in (model, other)]
    for turn in range(5):
        rows = ROWS[turn:] + ROWS[:turn]
        for optimizer in optimizers:
            optimizer.zero_grad()
        mine = accumulate_gradients(model, rows, plan, streams=128, graphs=graphs).read()
        plain = accumulate_gradients(other, rows, plan, streams=128).read()
        assert mine.loss == pytest.approx(plain.loss, rel=1e-3)
        for (name, a), b in zip(gradients(model).items(), gradients(other).values(), strict=True):
            assert float((a - b).norm() / b.norm().clamp_min(1e-30)) < 3e-2, name
    assert graphs.refused is None and graphs.replays, said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_no_step_waits_for_it():
    model = tunable()
    model.model.cuda()
    plan = replace(STEPS, precision="bf16", read_every=8)
    optimizer = make_optimizer(trainable_parameters(model.model), plan, flat=True)
    said: list[dict[str, Any]] = []
    graphs = make_graphs(model, plan, cross_entropy, ROWS, said.append)
    mine = Stepper(model, optimizer, plan, cross_entropy, said.append, graphs)
    for number in range(6):
        mine.read(mine.start(ROWS, number))
    torch.cuda.set_sync_debug_mode("error")
    try:
        started = [mine.start(ROWS, number) for number in range(6, 10)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(mine.read(step).loss) for step in started) and said == []
