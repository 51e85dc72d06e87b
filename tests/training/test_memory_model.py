"""Memory predicted from shapes is the memory that the real computation takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import build, ragged_samples
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import use_fused_layers
from tunesmith.models.lora import LoraSettings, attach_lora, trainable_parameters
from tunesmith.models.quantized import quantize_base
from tunesmith.ops.packing import Packing
from tunesmith.training.batching import Batch, collate
from tunesmith.training.memory_model import MemoryModel, row_tokens, trained_bytes, weight_bytes
from tunesmith.training.memory_trace import Answering, Ledger, PassMemory, Shapes, measured_step, only_trained
from tunesmith.training.objectives import LossSum, Objective, cross_entropy
from tunesmith.training.optimizers import make_optimizer
from tunesmith.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=4, batch_size=3, learning_rate=1e-3, seed=0)
ROWS = ragged_samples((40, 3, 17, 60, 22, 90, 5, 33, 71, 12), seed=3)


def lora(family: str = "llama") -> LanguageModel:
    model = build(family)
    attach_lora(model, LoraSettings(4, 8), seed=0)
    return LanguageModel(model)


def full(family: str = "llama") -> LanguageModel:
    return LanguageModel(build(family).requires_grad_(True))


def fused() -> LanguageModel:
    model = lora()
    assert use_fused_layers(model.model)
    return model


def quantized() -> LanguageModel:
    model = build("llama")
    quantize_base(model, "nf4")
    attach_lora(model, LoraSettings(4, 8), seed=0)
    return LanguageModel(model)


def real(model: LanguageModel, batch: Batch, objective: Objective = cross_entropy) -> PassMemory:
    """What the same step takes when it is computed."""
    ledger = Ledger(None)
    ledger.ignore([*model.model.parameters(), *model.model.buffers()])
    model.model.train()
    with model.packed(), ledger:
        said = objective(model, batch)
        saved = ledger.held
        said.loss.backward()
    return PassMemory(saved, ledger.peak)


KINDS: dict[str, Callable[[], LanguageModel]] = {
    "lora": lora,
    "full": full,
    "fused": fused,
    "quantized": quantized,
    "gemma2": lambda: lora("gemma2"),
    "gemma3": lambda: full("gemma3"),
    "gpt2": lambda: lora("gpt2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_take_what_the_computation_takes(kind: str) -> None:
    model, batch = KINDS[kind](), collate(ROWS)
    predicted = Shapes(model.model).step(batch, cross_entropy, PLAN)
    taken = real(model, batch)
    assert predicted.saved == pytest.approx(taken.saved, rel=0.01)
    assert predicted.peak == pytest.approx(taken.peak, rel=0.02)
    assert predicted.peak > 1.01 * predicted.saved > 100_000


# Products of transposed matrices copy them inside.
@pytest.mark.parametrize(("make", "seen"), [(lora, 0.94), (full, 0.86)])
def test_what_the_ledger_counts_is_what_the_allocator_gives(make: Callable[[], LanguageModel], seen: float) -> None:
    model, batch = make(), collate(ragged_samples((200, 150, 90), seed=1))
    predicted = Shapes(model.model).step(batch, cross_entropy, PLAN)
    model.model.train()
    with torch.autograd.profiler.profile(profile_memory=True) as profile, model.packed():
        cross_entropy(model, batch).loss.backward()
    held = most = 0
    for event in sorted(profile.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert most > 1_000_000
    assert seen * most < predicted.peak < 1.02 * most


def test_nothing_of_the_real_model_changes() -> None:
    model = lora()
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    state = torch.random.get_rng_state()
    shapes = Shapes(model.model)
    shapes.optimizer_bytes(PLAN)
    shapes.step(collate(ROWS), cross_entropy, PLAN)
    shapes.answering(Answering(2, 16, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in model.model.named_parameters())
    assert not model.model.training
    # A table that some operation keeps for later must not have been made without numbers.
    model.verify()


def test_layers_computed_again_keep_less() -> None:
    shapes, batch = Shapes(lora().model), collate(ROWS)
    none, one, both = (shapes.step(batch, cross_entropy, PLAN, recompute=r) for r in ((), (0,), (0, 1)))
    assert none.saved > one.saved > both.saved
    assert none.peak > one.peak > both.peak
    assert one.saved - both.saved == pytest.approx(none.saved - one.saved, rel=0.1)  # layers are alike


def test_gradients_that_are_there_count() -> None:
    shapes, batch = Shapes(full().model), collate(ROWS)
    first = shapes.step(batch, cross_entropy, PLAN)
    later = shapes.step(batch, cross_entropy, PLAN, gradients_there=True)
    assert first.peak < later.peak <= first.peak + trained_bytes(shapes.model)


def test_updates_within_the_backward_pass_hold_few_gradients() -> None:
    plan = replace(PLAN, optimizer_in_backward=True, max_grad_norm=0.0)
    shapes, batch = Shapes(full().model), collate(ragged_samples((5, 4), seed=1))
    _, gradients = shapes.optimizer_bytes(plan)
    assert gradients == 0
    inside, after = shapes.step(batch, cross_entropy, plan), shapes.step(batch, cross_entropy, PLAN)
    assert after.peak - inside.peak > 0.3 * trained_bytes(shapes.model)
    assert all(p.grad is None for p in shapes.model.parameters())


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "muon"])
@pytest.mark.parametrize("make", [lora, full])
def test_the_optimisers_state_is_that_of_the_real_one(make: Callable[[], LanguageModel], name: Any) -> None:
    plan, model = replace(PLAN, optimizer=name), make()
    state, gradients = Shapes(model.model).optimizer_bytes(plan)
    optimizer = make_optimizer(trainable_parameters(model.model), plan)
    assert state == optimizer.state_bytes() > 0
    assert gradients == sum(buffer.gradients.nbytes for buffer in optimizer.buffers)


def test_an_adapter_can_be_put_on_shapes() -> None:
    shapes, batch = Shapes(build("llama")), collate(ROWS)
    shapes.change(lambda model: attach_lora(model, LoraSettings(4, 8), seed=0))
    assert shapes.step(batch, cross_entropy, PLAN) == Shapes(lora().model).step(batch, cross_entropy, PLAN)
    assert shapes.optimizer_bytes(PLAN) == Shapes(lora().model).optimizer_bytes(PLAN)


def asking(model: LanguageModel, batch: Batch) -> LossSum:
    """An objective whose steps depend on numbers."""
    with torch.no_grad():
        size = model.hidden(batch.ids[:3], Packing.of([3])).abs().max()
    return replace(cross_entropy(model, batch), metrics={"size": float(size)})


def test_an_objective_that_asks_for_numbers_is_measured_on_short_rows() -> None:
    model, rows = lora(), ragged_samples((300, 250, 280, 310), seed=2)
    batch = collate(rows)
    with pytest.raises(RuntimeError):
        Shapes(model.model).step(batch, asking, PLAN)
    memory = MemoryModel(model, rows, PLAN, asking, held_bytes=10**8)
    taken = real(model, batch, asking)
    for parameter in model.model.parameters():
        parameter.grad = None
    assert memory.measure(batch).peak == pytest.approx(taken.peak, rel=0.15)
    assert measured_step(model, batch, asking, PLAN) == memory.measure(batch)
    assert all(p.grad is None for p in model.model.parameters())


def test_an_error_of_the_objective_itself_is_told() -> None:
    def wrong(model: LanguageModel, batch: Batch) -> LossSum:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        MemoryModel(lora(), ROWS, PLAN, wrong, held_bytes=10**8).forecast(4096)


def test_parts_add_up_to_the_peak() -> None:
    model = lora()
    held = weight_bytes(model.model) + 50_000_000
    forecast = MemoryModel(model, ROWS, PLAN, cross_entropy, held).forecast(4096)
    assert sum(forecast.parts.values()) == forecast.peak_bytes
    assert forecast.parts["weights"] == weight_bytes(model.model)
    assert forecast.parts["process"] >= 50_000_000
    assert forecast.parts["optimizer"] == pytest.approx(2 * forecast.parts["gradients"], rel=0.01)
    assert forecast.parts["saving"] == trained_bytes(model.model) > 0
    assert min(forecast.parts.values()) >= 0


def test_tied_weights_count_once() -> None:
    tied, loose = build("llama"), build("qwen3")
    assert weight_bytes(tied) == sum(t.nbytes for t in (*tied.parameters(), *tied.buffers()))
    assert weight_bytes(loose) > weight_bytes(tied)


def test_the_heaviest_micro_batch_of_the_run_counts() -> None:
    rows = ragged_samples((10,) * 30 + (80, 90) + (10,) * 30, seed=4)
    plan = replace(PLAN, batch_size=2, steps=31, shuffle=False)
    memory = MemoryModel(lora(), rows, plan, cross_entropy, 10**8)
    (heaviest, others), *_ = memory.heaviest(4096)
    assert heaviest.tokens == 170 and not others
    (alone, others), *_ = memory.heaviest(100)
    assert alone.tokens == 90 and others
    assert memory.forecast(100).peak_bytes < memory.forecast(4096).peak_bytes
    assert memory.forecast(4096).stream_tokens == 170


def test_shuffled_rows_are_looked_at_in_the_order_they_are_learnt_in() -> None:
    rows = ragged_samples(tuple(range(20, 80)), seed=4)
    plan = replace(PLAN, batch_size=4, steps=30, seed=7)
    memory = MemoryModel(lora(), rows, plan, cross_entropy, 10**8)
    from tunesmith.training.batching import RowOrder

    order = RowOrder(60, 4, 7)
    most = max(sum(row_tokens(rows[i]) for i in order.of_step(step)) for step in range(30))
    assert memory.heaviest(10_000)[0][0].tokens == most


def test_a_much_longer_document_is_looked_at_too() -> None:
    plan = replace(PLAN, batch_size=3, steps=2, shuffle=False)
    memory = MemoryModel(lora(), ragged_samples((50, 50, 50, 120, 3, 5), seed=4), plan, cross_entropy, 10**8)
    assert [sorted(len(row.ids) for row in batch.rows)[-1] for batch, _ in memory.heaviest(4096)] == [50, 120]


def test_answers_count_where_they_take_more() -> None:
    model = lora()
    few = MemoryModel(model, ROWS[:3], PLAN, cross_entropy, 10**8, answers=Answering(1, 4, 1)).forecast(64)
    many = MemoryModel(model, ROWS[:3], PLAN, cross_entropy, 10**8, answers=Answering(64, 276, 24)).forecast(64)
    none = MemoryModel(model, ROWS[:3], PLAN, cross_entropy, 10**8).forecast(64)
    assert few.peak_bytes == none.peak_bytes < many.peak_bytes
    cache = 2 * 2 * 2 * 8 * 4 * 64 * 300  # keys and values of 2 layers, 2 heads of 8 fp32 numbers
    assert many.parts["answers"] > cache and few.parts["answers"] == 0


def test_only_the_named_parameters_are_trained() -> None:
    model = lora().model
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    with only_trained(model, names[-2:]):
        assert [n for n, p in model.named_parameters() if p.requires_grad] == names[-2:]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == names


def test_compiled_kernels_work_again_after_a_prediction() -> None:
    model, batch = fused(), collate(ROWS)
    before = real(model, batch)
    Shapes(model.model).step(batch, cross_entropy, PLAN)
    model.verify()
    loss: Tensor = cross_entropy_of(model, batch)
    assert torch.isfinite(loss) and float(loss) > 0
    assert before.peak > 0


def cross_entropy_of(model: LanguageModel, batch: Batch) -> Tensor:
    with model.packed(), torch.no_grad():
        return cross_entropy(model, batch).loss


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", [lora, full])
def test_the_peak_on_a_gpu_is_predicted(make: Callable[[], LanguageModel]) -> None:
    model = LanguageModel(make().model.to("cuda"))
    rows = ragged_samples((400, 380, 420, 390), seed=1)
    memory = MemoryModel(model, rows, PLAN, cross_entropy, torch.cuda.memory_allocated())
    optimizer = make_optimizer(trainable_parameters(model.model), PLAN)
    torch.cuda.reset_peak_memory_stats()
    batch, _ = memory.heaviest(4096)[0]
    with model.packed():
        cross_entropy(model, batch).loss.backward()
    optimizer.clip(1.0, 1.0)
    optimizer.step()
    assert memory.forecast(4096).peak_bytes == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15, abs=64 << 20)
