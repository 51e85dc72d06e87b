"""The correctness gate: it holds here, and it fails where something is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.models import fused_layers
from tunesmith.ops import cross_entropy, decoder_layer, dora_linear, lora_linear, packed_attention, quantized
from tunesmith.ops.cross_entropy import LogitRule
from tunesmith.ops.packing import Packing
from tunesmith.training import step, trunk_cache
from tunesmith.training.fixed_shapes import FixedInputs
from tunesmith.training.gate import Check, Outcome, gate_checks, run_gate
from tunesmith.training.gate.compare import Comparison, compare_functions, judge, relative_error, same_bits, together
from tunesmith.training.gate.models import FAMILIES, small
from tunesmith.training.gate.steps import Way, mixed, our_steps
from tunesmith.training.gate.wide import wide
from tunesmith.training.optimizers.adamw import AdamW

CPU = torch.device("cpu")
CHECKS = gate_checks()
EXACT = (torch.float64, torch.float32)


def named(check: Check) -> str:
    return f"{check.group}: {check.name}"


def told(outcome: Outcome) -> str:
    return (
        f"{outcome.check} in {outcome.dtype} on {outcome.device}: {outcome.worst_tensor} is off by "
        f"{outcome.error:.2e}, {outcome.allowed:.2e} is allowed"
    )


@pytest.mark.parametrize("check", CHECKS, ids=named)
def test_it_holds_in_fp64_and_fp32(check: Check) -> None:
    outcomes = run_gate(CPU, EXACT, [check])
    assert outcomes
    for outcome in outcomes:
        assert outcome.holds, told(outcome)
        assert outcome.tensors > 0


@pytest.mark.parametrize("check", [c for c in CHECKS if c.group == "operation"], ids=named)
def test_operations_in_bf16_are_as_near_as_plain_ones(check: Check) -> None:
    for outcome in run_gate(CPU, [torch.bfloat16], [check]):
        assert outcome.holds, told(outcome)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_holds_on_a_gpu() -> None:
    outcomes = run_gate(torch.device("cuda"), (*EXACT, torch.bfloat16), CHECKS)
    assert len(outcomes) > len(CHECKS)
    assert not [told(outcome) for outcome in outcomes if not outcome.holds]


def test_what_the_issue_names_is_checked() -> None:
    names = " | ".join(named(check) for check in CHECKS)
    for what in (
        "head cross-entropy", "label smoothing", "z-loss", "LoRA linear", "DoRA linear", "shared prefixes",
        "sliding window", "soft cap", "one giant document", "several documents", "nothing supervised",
        "everything supervised", "AdamW", "quantised linear", "RMSNorm", "before attention", "after attention",
        "tied head", "cached", "recomputed", ": full", ": LoRA", ": DoRA",
        "nf4 weights", "int8 weights",
    ):  # fmt: skip
        assert what in names, what
    assert len({named(check) for check in CHECKS}) == len(CHECKS)


Wrong = Callable[[Any], Any]
"""Of a function, one that does something else."""


def scaled(index: int, by: float = 1.001) -> Wrong:
    """One of a backward pass's gradients is off by a thousandth."""

    def wrong(right: Any) -> Any:
        def function(*args: Any) -> Any:
            gradients = list(right(*args))
            gradients[index] = gradients[index] * by
            return tuple(gradients)

        return staticmethod(function)

    return wrong


def forgotten(index: int) -> Wrong:
    """One of a backward pass's gradients is not computed."""

    def wrong(right: Any) -> Any:
        def function(*args: Any) -> Any:
            gradients = list(right(*args))
            gradients[index] = None
            return tuple(gradients)

        return staticmethod(function)

    return wrong


def soft_cap_forgotten(right: Any) -> Any:
    return lambda rule, grad, logits: grad * rule.scale


def value_gradient_off(right: Any) -> Any:
    return lambda q, k, v, *more: right(q, k, v + 1e-3 * (v - v.detach()), *more)


def documents_not_apart(right: Any) -> Any:
    def function(q: Tensor, k: Tensor, v: Tensor, packing: Packing, *more: Any) -> Tensor:
        return right(q, k, v, Packing.of([sum(packing.lengths)]), *more)

    return function


def window_forgotten(right: Any) -> Any:
    return lambda q, k, v, packing, rule, window: right(q, k, v, packing, rule, None)


def query_adapter_off(right: Any) -> Any:
    """Of the joined queries, keys and values, the gradient of the queries' A."""

    def function(projections: Any, *given: Any) -> None:
        right(projections, *given)
        if len(projections) == 3:
            given[-1][2].mul_(1.001)

    return function


def weights_off(right: Any) -> Any:
    return lambda *given: right(*given) * 1.001


def weights_swapped(right: Any) -> Any:
    return lambda *given: right(*given).flip(0)


def rate_off(right: Any) -> Any:
    return lambda rule, cells, gradients, rate, scaling: right(rule, cells, gradients, rate * 1.001, scaling)


def filling_counts(right: Any) -> Any:
    """Of what fills a shape up, one position has a weight."""

    def function(inputs: Any, batch: Any) -> None:
        right(inputs, batch)
        inputs.weights[-1] += 1e-2

    return function


_HEAD, _LAYER = cross_entropy._HeadLoss, decoder_layer
PLANTED: list[tuple[Any, str, Wrong, str, str]] = [
    (lora_linear._MergedLora, "backward", scaled(4), "operation: LoRA linear, a stream", "d b"),
    (lora_linear._MergedLora, "backward", scaled(0), "operation: LoRA linear, a stream", "d x"),
    (dora_linear._MergedDora, "backward", scaled(5), "operation: DoRA linear, a stream", "d magnitude"),
    (_HEAD, "backward", scaled(1), "operation: head cross-entropy, some positions", "d head"),
    (_HEAD, "backward", forgotten(2), "operation: head cross-entropy, every position, over two chunks", "d bias"),
    (LogitRule, "backward", soft_cap_forgotten, "operation: head cross-entropy, soft-capped and scaled", "d "),
    (quantized, "int8_values", weights_off, "operation: quantised linear, int8", ""),
    (quantized, "nf4_values", weights_swapped, "operation: dequantised weights, nf4", "weight (7, 64)"),
    (packed_attention, "stream_attention", value_gradient_off, "attention: attention, shared prefixes", "d v"),
    (packed_attention, "stream_attention", documents_not_apart, "attention: attention, several documents", ""),
    (
        packed_attention,
        "stream_attention",
        window_forgotten,
        "attention: attention, one giant document, sliding window",
        "",
    ),
    (packed_attention, "fixed_attention", value_gradient_off, "attention: attention, in a fixed shape", "d v"),
    (FixedInputs, "fill", filling_counts, "model step: Llama, tied head: LoRA, in fixed shapes", ""),
    (_LAYER._AttentionInput, "backward", scaled(4), "decoder layer: before attention, full", "d norm"),
    (_LAYER._AttentionInput, "backward", forgotten(4), "decoder layer: before attention, full", "d norm"),
    (_LAYER._AttentionOutput, "backward", scaled(2), "decoder layer: after attention, LoRA", "d attended"),
    (AdamW, "update", rate_off, "optimiser: AdamW, flat buffers", ""),
    (_LAYER, "_adapter_gradients", query_adapter_off, "model step: Llama, tied head: LoRA", "self_attn.q_proj.lora_A"),
    (
        _LAYER._AttentionInput,
        "backward",
        forgotten(4),
        "model step: Qwen 3, normed heads: full",
        "input_layernorm.weight",
    ),
]


@pytest.mark.parametrize(
    ("place", "name", "wrong", "check", "tensor"), PLANTED, ids=[f"{p[3]}, {p[4] or 'any'}" for p in PLANTED]
)
def test_a_thousandth_off_is_noticed_and_named(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, wrong: Wrong, check: str, tensor: str
) -> None:
    (chosen,) = (c for c in CHECKS if named(c) == check)
    assert all(outcome.holds for outcome in run_gate(CPU, EXACT, [chosen]))
    monkeypatch.setattr(place, name, wrong(getattr(place, name)))
    outcomes = run_gate(CPU, EXACT, [chosen])
    assert outcomes
    for outcome in outcomes:
        assert not outcome.holds
        assert tensor in outcome.worst_tensor
        assert outcome.error > 20 * outcome.allowed


def test_a_check_is_the_same_alone_and_among_others() -> None:
    chosen = [check for check in CHECKS if check.group == "operation"][:3]
    together_ = run_gate(CPU, EXACT, chosen)
    alone = run_gate(CPU, EXACT, chosen[-1:])
    assert [o.error for o in together_[-2:]] == [o.error for o in alone]
    assert [o.error for o in run_gate(CPU, EXACT, chosen[-1:], seed=1)] != [o.error for o in alone]


def test_each_outcome_is_told_as_it_is_there() -> None:
    heard: list[Outcome] = []
    chosen = [check for check in CHECKS if check.group == "optimiser"]
    assert run_gate(CPU, [torch.float32], chosen, told=heard.append) == tuple(heard)
    assert len(heard) == len(chosen) and all(o.seconds > 0 for o in heard)


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_relative_error_of_tensors_and_of_zeros() -> None:
    reference, zeros = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert relative_error(torch.tensor([3.0, 4.005]), reference) == pytest.approx(1e-3, rel=1e-3)
    assert relative_error(zeros, zeros) == relative_error(None, zeros) == relative_error(zeros, None) == 0
    assert relative_error(torch.tensor([0.0, 1e-30]), zeros) == math.inf
    assert relative_error(torch.tensor([0.0, 1e-30]), None) == math.inf
    assert relative_error(None, reference) == math.inf
    assert relative_error(torch.zeros(3), reference) == math.inf
    assert relative_error(torch.tensor([3.0, math.nan]), reference) == math.inf


def test_what_is_allowed_depends_on_the_type_and_in_half_precision_on_plain_torch() -> None:
    reference: dict[str, Tensor | None] = {"a": torch.ones(4, dtype=torch.float64)}

    def off(error: float) -> dict[str, Tensor | None]:
        return {"a": torch.full((4,), 1 + error, dtype=torch.float64)}

    assert judge(off(1e-6), reference, torch.float32).allowed == 1e-5
    assert judge(off(1e-6), reference, torch.float64).allowed == 1e-9
    assert judge(off(0.01), reference, torch.bfloat16, off(0.02)).allowed == pytest.approx(0.03)
    assert judge(off(0.01), reference, torch.bfloat16, off(0.0)).allowed == pytest.approx(1.5 * 2**-9)
    assert judge(off(0.01), reference, torch.bfloat16).allowed == 0
    assert judge(off(1e-6), reference, torch.float32, off(1e-7)).allowed == 1e-5
    assert judge(off(1e-6), reference, torch.float32, off(1e-4)).allowed == pytest.approx(1.5e-4)


def test_the_tensor_with_the_least_room_is_named_not_the_first() -> None:
    reference: dict[str, Tensor | None] = {"a": torch.ones(2), "b": torch.ones(2), "c": None}
    found = judge({"a": torch.ones(2), "b": torch.ones(2) * 1.1, "c": None}, reference, torch.float32)
    assert (found.worst_tensor, found.tensors) == ("b", 3)
    assert found.error == pytest.approx(0.1, rel=1e-3)


def test_nothing_to_compare_and_missing_tensors_never_hold() -> None:
    assert judge({}, {}, torch.float32).error == math.inf
    assert judge({"a": torch.ones(1)}, {"a": torch.ones(1), "b": None}, torch.float32).worst_tensor == "b"
    assert judge({"a": None, "b": None}, {"a": None}, torch.float32).error == math.inf
    assert same_bits({}, {}).error == math.inf
    assert same_bits({"a": None}, {}).error == math.inf


def test_a_row_that_should_be_zero_is_looked_at_by_itself() -> None:
    reference = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    leaking = torch.tensor([[1.0, 2.0], [0.0, 1e-20]])
    assert judge({"a": leaking}, {"a": reference}, torch.float32).error < 1e-19
    assert judge({"a": leaking}, {"a": reference}, torch.float32, rows=True).error == math.inf
    assert judge({"a": reference}, {"a": reference}, torch.float32, rows=True).error == 0


def test_a_gradient_that_is_nothing_but_rounding_is_measured_against_the_largest() -> None:
    """That of a bias on all keys: softmax does not see it."""
    large, noise = torch.ones(4, dtype=torch.float64), torch.full((4,), 1e-17, dtype=torch.float64)
    reference: dict[str, Tensor | None] = {"loss": large * 1e9, "d a": large, "d b": noise}
    found = judge({"loss": large * 1e9, "d a": large, "d b": -3 * noise}, reference, torch.float64)
    assert found.error == pytest.approx(4e-17)
    found = judge({"loss": large * 1e9, "d a": large, "d b": noise + 1e-6}, reference, torch.float64)
    assert (found.worst_tensor, found.error) == ("d b", pytest.approx(1e-6))
    small_but_real: dict[str, Tensor | None] = {"d a": large, "d b": large * 1e-8}
    found = judge({"d a": large, "d b": large * 1.01e-8}, small_but_real, torch.float32)
    assert (found.worst_tensor, found.error) == ("d b", pytest.approx(0.01))


def test_one_bit_is_a_difference() -> None:
    one = torch.tensor([1.0, 2.0])
    other = torch.nextafter(one, torch.tensor(9.0))
    assert same_bits({"a": one}, {"a": one.clone()}) == Comparison("a", 0.0, 0.0, 1)
    assert same_bits({"a": other}, {"a": one}).error > 0
    assert same_bits({"a": None}, {"a": one}).error > 0


def test_batches_are_pooled_by_name() -> None:
    first: dict[str, Tensor | None] = {"loss": torch.tensor(1.0), "d w": torch.ones(2, 3), "d v": None, "d u": None}
    second: dict[str, Tensor | None] = {"loss": torch.tensor(2.0), "d w": None, "d v": torch.ones(3), "d u": None}
    pooled = together([first, second])
    assert pooled["loss"] is not None and pooled["loss"].tolist() == [1.0, 2.0]
    assert pooled["d w"] is not None and pooled["d w"].shape == (4, 3) and pooled["d w"][2:].any().item() is False
    assert pooled["d v"] is not None and pooled["d v"].tolist() == [0, 0, 0, 1, 1, 1]
    assert pooled["d u"] is None


def test_functions_are_compared_on_the_same_rounded_numbers() -> None:
    """In bf16 a product that is right is as far from float64 as the plain one, not as its rounded input is."""
    generator = torch.Generator().manual_seed(0)
    inputs = {"x": torch.randn(64, generator=generator, dtype=torch.float64)}
    found = compare_functions(
        lambda t: {"y": t["x"] * 1}, lambda t: {"y": t["x"] * 1}, inputs, generator, CPU, torch.bfloat16
    )
    assert found.error < 2**-8 and found.tensors == 2


# ── the float64 reference ────────────────────────────────────────────────────────────────────────────────────────────


def test_wide_lets_models_compute_in_float64_and_nothing_else_changes() -> None:
    x = torch.rand(5, dtype=torch.float64)
    with wide():
        assert x.float().dtype == x.to(torch.float32).dtype == x.to(dtype=torch.float32).dtype == torch.float64
        assert F.softmax(x, dim=0, dtype=torch.float32).dtype == x.type(torch.float32).dtype == torch.float64
        assert x.half().dtype == torch.float16 and x.to(torch.bfloat16).dtype == torch.bfloat16
    assert x.float().dtype == x.to(torch.float32).dtype == torch.float32
    model = small(FAMILIES[0], torch.Generator().manual_seed(0)).open(torch.float64, torch.float64, CPU)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), wide():
        precise = model(ids).logits
    with torch.no_grad():
        rounded = model(ids).logits
    assert 1e-9 < relative_error(rounded, precise) < 1e-5


def test_a_reference_begins_with_the_numbers_of_the_type_it_is_for() -> None:
    source = small(FAMILIES[0], torch.Generator().manual_seed(0))
    half, reference = (source.open(dtype, torch.bfloat16, CPU) for dtype in (torch.bfloat16, torch.float64))
    for (name, a), b in zip(half.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(a.double(), b), name


def test_the_fast_paths_are_taken_in_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused layers, shared prefixes and several micro-batches: else a gate that holds would say nothing of them."""
    seen: dict[str, int] = {"fused": 0, "prefixes": 0, "streams": 0}
    fused, batches = fused_layers.attention_input, step.micro_batches

    def count_fused(*given: Any) -> Any:
        seen["fused"] += 1
        return fused(*given)

    def count_batches(*given: Any, **more: Any) -> Any:
        for batch in batches(*given, **more):
            seen["streams"] += 1
            seen["prefixes"] += len(batch.packing.prefixes)
            yield batch

    monkeypatch.setattr(fused_layers, "attention_input", count_fused)
    monkeypatch.setattr(step, "micro_batches", count_batches)
    generator = torch.Generator().manual_seed(0)
    source = small(FAMILIES[0], generator)
    ours, adapters = our_steps(source, Way(), [mixed(generator, source.vocabulary)], generator, CPU, torch.float32)
    assert seen["fused"] >= 4 and seen["streams"] >= 2 and seen["prefixes"] >= 1
    assert len(adapters) == 14 and all(one.b.any() for one in adapters.values())
    assert all(gradient is not None and gradient.any() for gradient in ours.values())


def test_the_cache_is_used_where_a_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    states = trunk_cache.TrunkCache.states
    monkeypatch.setattr(trunk_cache.TrunkCache, "states", lambda *given: asked.append(1) or states(*given))
    (chosen,) = (c for c in CHECKS if c.name.endswith("the others cached"))
    assert run_gate(CPU, [torch.float32], [chosen])[0].holds
    assert len(asked) > 5
