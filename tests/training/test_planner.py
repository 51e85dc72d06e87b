"""Micro-batch and recomputation from shapes and a limit; a refusal that says what would fit."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.tiny import build, ragged_samples
from tunesmith.errors import ResourceError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import use_fused_layers
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.training.memory_model import MemoryModel, weight_bytes
from tunesmith.training.memory_trace import Shapes
from tunesmith.training.objectives import cross_entropy
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.planner import MemoryPlan, plan_memory
from tunesmith.training.resources import held_memory

PLAN = TrainingPlan(steps=3, batch_size=2, learning_rate=1e-3, seed=0)
ROWS = ragged_samples((400, 350, 400, 350, 400, 350), seed=3)  # of lengths that attention takes together
HELD = 10**8


def lora(layers: int = 2, rank: int = 4) -> LanguageModel:
    model = build("llama")
    config = model.config.__class__(**{**model.config.to_dict(), "num_hidden_layers": layers})
    model = type(model)(config)
    attach_lora(model, LoraSettings(rank, 8), seed=0)
    use_fused_layers(model)
    return LanguageModel(model)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return lora()


@pytest.fixture(scope="module")
def memory(model: LanguageModel) -> MemoryModel:
    return MemoryModel(model, ROWS, PLAN, cross_entropy, HELD)


def planned(model: LanguageModel, limit: int, **more: Any) -> MemoryPlan:
    return plan_memory(model, more.pop("rows", ROWS), more.pop("plan", PLAN), limit, held_bytes=HELD, **more)


def test_what_fits_is_not_computed_twice(model: LanguageModel, memory: MemoryModel) -> None:
    plan = planned(model, 10**9)
    assert (plan.micro_batch_tokens, plan.recompute, plan.limit_bytes) == (4096, (), 10**9)
    assert plan.predicted_peak_bytes == sum(plan.parts.values()) == memory.forecast(4096).peak_bytes
    assert "nothing is computed twice" in plan.reasons[0]
    exact = planned(model, plan.predicted_peak_bytes)
    assert exact.micro_batch_tokens == 4096


def test_smaller_micro_batches_come_first_on_a_cpu(model: LanguageModel, memory: MemoryModel) -> None:
    limit = memory.forecast(4096).peak_bytes - 1
    plan = planned(model, limit)
    assert plan.micro_batch_tokens < 4096 and plan.recompute == ()
    assert plan.predicted_peak_bytes <= limit
    assert memory.forecast(2 * plan.micro_batch_tokens).peak_bytes > limit  # the largest of the halves that fits


def test_then_as_few_layers_as_fit_are_computed_again(model: LanguageModel, memory: MemoryModel) -> None:
    limit = memory.forecast(400, (0,)).peak_bytes
    assert memory.forecast(400, range(2)).peak_bytes < limit < memory.forecast(400).peak_bytes
    plan = planned(model, limit)
    count = len(plan.recompute)
    assert plan.recompute == tuple(range(count)) and 0 < count < 2  # the lowest layers
    assert memory.forecast(plan.micro_batch_tokens, plan.recompute[:-1]).peak_bytes > limit
    assert plan.predicted_peak_bytes <= limit
    assert f"{count} of 2 layers" in " ".join(plan.reasons)


def test_asked_for_recomputation_is_kept(model: LanguageModel, memory: MemoryModel) -> None:
    assert planned(model, 10**9, recompute="on").recompute == (0, 1)
    with pytest.raises(ResourceError, match=r"train\.recompute: auto"):
        planned(model, memory.forecast(400).peak_bytes - 1, recompute="off")


def test_a_micro_batch_of_the_user_stays(model: LanguageModel, memory: MemoryModel) -> None:
    limit = memory.forecast(4096).peak_bytes - 1
    plan = planned(model, limit, fixed=True)
    assert plan.micro_batch_tokens == 4096 and plan.recompute
    with pytest.raises(ResourceError, match=r"micro_batch_tokens: auto"):
        planned(model, limit, fixed=True, recompute="off")


def test_only_layers_with_a_backward_pass_are_computed_again() -> None:
    model = build("llama")
    attach_lora(model, LoraSettings(4, 8, last_layers=1), seed=0)
    assert planned(LanguageModel(model), 10**9, recompute="on").recompute == (1,)


@pytest.fixture(scope="module")
def tight(memory: MemoryModel) -> MemoryPlan:
    """A plan under a limit that the longest row alone does not meet."""
    return planned(lora(), memory.forecast(400).peak_bytes - 1)


def test_the_same_shapes_get_the_same_plan(tight: MemoryPlan) -> None:
    assert planned(lora(), tight.limit_bytes) == tight


def test_a_plan_survives_json_and_is_applied(tight: MemoryPlan) -> None:
    again = MemoryPlan.from_dict(json.loads(json.dumps(asdict(tight))))
    assert again == tight and again.recompute
    applied = again.apply(PLAN)
    assert applied.micro_batch_tokens == tight.micro_batch_tokens and applied.recompute_layers == tight.recompute
    assert replace(applied, micro_batch_tokens=4096, recompute_layers=()) == PLAN


def test_shapes_alone_can_be_planned() -> None:
    base = build("llama")
    shapes = Shapes(base)
    shapes.change(lambda copy: attach_lora(copy, LoraSettings(4, 8), seed=0))
    attach_lora(base, LoraSettings(4, 8), seed=0)
    assert planned(shapes, 10**9) == planned(LanguageModel(base), 10**9)  # type: ignore[arg-type]
    measured = plan_memory(shapes, ROWS, PLAN, 10**10)
    assert measured.parts["weights"] == weight_bytes(base)
    assert measured.parts["process"] == pytest.approx(held_memory(), rel=0.2)


@pytest.fixture(scope="module")
def refusal(model: LanguageModel, memory: MemoryModel) -> tuple[ResourceError, int]:
    longest = max(len(row.ids) for row in ROWS)
    limit = memory.forecast(longest, range(2)).peak_bytes - 40_000
    with pytest.raises(ResourceError) as caught:
        planned(model, limit)
    return caught.value, limit


def test_what_cannot_fit_is_refused_with_what_it_needs(refusal: tuple[ResourceError, int]) -> None:
    error, _ = refusal
    assert error.exit_code == 4 and error.where == "train.memory_limit"
    assert "at least" in error.what and "process" in error.what and "MB" in error.what
    assert error.fix is not None
    for remedy in ("method.rank", "method: qlora", "train.max_length", "a base of at most"):
        assert remedy in error.fix


def test_shorter_rows_that_are_named_do_fit(model: LanguageModel, refusal: tuple[ResourceError, int]) -> None:
    error, limit = refusal
    said = str(error.fix).partition("train.max_length: ")[2]
    length, left_out = int(said.split()[0]), int(said.partition("leaves out ")[2].split()[0])
    kept = [row for row in ROWS if len(row.ids) <= length]
    assert len(ROWS) - len(kept) == left_out > 0
    assert planned(model, limit, rows=kept).predicted_peak_bytes <= limit


def test_a_smaller_rank_that_is_named_does_fit(refusal: tuple[ResourceError, int], memory: MemoryModel) -> None:
    error, limit = refusal
    rank = int(str(error.fix).partition("method.rank: ")[2].split()[0])
    shrunk = HELD - memory.static["weights"] + sum(p.nbytes for p in lora(rank=rank).model.parameters())
    plan = plan_memory(lora(rank=rank), ROWS, PLAN, limit, held_bytes=shrunk)
    assert plan.predicted_peak_bytes <= limit


def test_full_tuning_is_shown_the_way_to_adapters() -> None:
    model, rows = build("llama").requires_grad_(True), ragged_samples((20, 22), seed=1)
    least = MemoryModel(LanguageModel(model), rows, PLAN, cross_entropy, HELD).forecast(64, (0, 1)).peak_bytes
    with pytest.raises(ResourceError) as caught:
        planned(LanguageModel(model), least - 50_000, rows=rows)
    assert "method: lora" in str(caught.value.fix) and "method: qlora" in str(caught.value.fix)
    assert "method.rank" not in str(caught.value.fix)


def test_the_last_third_is_tried_where_more_is_trained() -> None:
    model = lora(layers=3)
    rows = ragged_samples((400, 410), seed=1)
    memory = MemoryModel(model, rows, PLAN, cross_entropy, HELD)
    limit = memory.forecast(410).peak_bytes - 1000
    with pytest.raises(ResourceError) as caught:
        planned(model, limit, rows=rows, recompute="off")
    assert "method.last_layers: 1" in str(caught.value.fix)


def test_where_nothing_alone_is_enough_that_is_said(model: LanguageModel) -> None:
    with pytest.raises(ResourceError, match="nothing of this alone is enough"):
        planned(model, 1000)
