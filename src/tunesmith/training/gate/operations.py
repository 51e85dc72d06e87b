"""Checks of single operations: products, adapters, the head with its losses, quantised weights.

Each compares with the plain form that stands beside the operation; what is drawn are sizes that do not divide evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.models.quantized import QuantizedLinear
from tunesmith.ops import cross_entropy, dora_linear, lora_linear, product, quantized, token_loss
from tunesmith.ops.cross_entropy import LogitRule
from tunesmith.ops.token_loss import Teacher, TokenLoss
from tunesmith.training.gate.compare import Comparison, Function, compare_functions, judge, results, same_bits
from tunesmith.training.gate.types import EVERY, EXACT, Check

GROUP = "operation"
_IN, _OUT, _RANK, _SCALING = 27, 19, 5, 1.7


def operation_checks() -> list[Check]:
    """Every operation that has a fast form."""
    return [
        Check("linear product", GROUP, _linear, EXACT),
        *(Check(f"LoRA linear, {words}", GROUP, partial(_lora, shape=s, bias=b), EVERY) for words, s, b in _SHAPES),
        *(Check(f"DoRA linear, {words}", GROUP, partial(_dora, shape=s, bias=b), EVERY) for words, s, b in _SHAPES),
        *(
            Check(f"head cross-entropy, {words}", GROUP, partial(_head, rule=r, positions=s, bias=b), EVERY)
            for words, r, s, b in _HEADS
        ),
        *(Check(f"token loss, {words}", GROUP, partial(_token_loss, loss=loss), EVERY) for words, loss in _LOSSES),
        Check("token loss, teacher", GROUP, _taught, EVERY),
        *(Check(f"quantised linear, {kind}", GROUP, partial(_quantized, kind=kind)) for kind in ("nf4", "int8")),
        Check("dequantised weights, nf4", GROUP, _dequantised, (torch.float32,)),
    ]


_SHAPES = (("a stream", (41,), False), ("a batch, with bias", (3, 14), True), ("one token", (1,), True))
_HEADS = (
    ("some positions", LogitRule(), 37, False),
    ("every position, over two chunks", LogitRule(), cross_entropy.CHUNK + 9, True),
    ("one position", LogitRule(), 1, False),
    ("no position", LogitRule(), 0, True),
    ("soft-capped and scaled", LogitRule(scale=0.7, softcap=5.0), 37, True),
)
_LOSSES = (
    ("label smoothing", TokenLoss(label_smoothing=0.1)),
    ("z-loss", TokenLoss(z_loss=1e-2)),
    ("both", TokenLoss(label_smoothing=0.2, z_loss=1e-2)),
)


def randn(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers in float64 on the CPU."""
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def _linear(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Comparison:
    inputs = {
        "x": randn(generator, 2, 23, _IN),
        "weight": randn(generator, _OUT, _IN),
        "bias": randn(generator, _OUT),
    }

    def fast(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        layer = product.FastLinear(_IN, _OUT, device="meta")
        return {"y": torch.func.functional_call(layer, {n: given[n] for n in ("weight", "bias")}, given["x"])}

    def plain(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y": F.linear(given["x"], given["weight"], given["bias"])}

    return compare_functions(fast, plain, inputs, generator, device, dtype)


def _lora(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, shape: tuple[int, ...], bias: bool
) -> Comparison:
    def form(function: Callable[..., Tensor]) -> Function:
        return lambda t: {"y": function(t["x"], t["weight"], t.get("bias"), t["a"], t["b"], _SCALING)}

    inputs = _adapted(generator, shape, bias)
    fast, plain = form(lora_linear.lora_linear), form(lora_linear.lora_reference)
    return compare_functions(fast, plain, inputs, generator, device, dtype, frozen=("weight", "bias"))


def _dora(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, shape: tuple[int, ...], bias: bool
) -> Comparison:
    def form(function: Callable[..., Tensor]) -> Function:
        return lambda t: {"y": function(t["x"], t["weight"], t.get("bias"), t["a"], t["b"], t["magnitude"], _SCALING)}

    inputs = _adapted(generator, shape, bias) | {"magnitude": randn(generator, _OUT).abs() + 0.5}
    fast, plain = form(dora_linear.dora_linear), form(dora_linear.dora_reference)
    return compare_functions(fast, plain, inputs, generator, device, dtype, frozen=("weight", "bias"))


def _adapted(generator: torch.Generator, shape: tuple[int, ...], bias: bool) -> dict[str, Tensor]:
    """Input, frozen layer and adapter with B not zero."""
    inputs = {
        "x": randn(generator, *shape, _IN),
        "weight": randn(generator, _OUT, _IN),
        "a": randn(generator, _RANK, _IN),
        "b": randn(generator, _OUT, _RANK),
    }
    return inputs | ({"bias": randn(generator, _OUT)} if bias else {})


def _head(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rule: LogitRule,
    positions: int,
    bias: bool,
) -> Comparison:
    def form(function: Callable[..., Tensor]) -> Function:
        def loss(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"loss": function(t["hidden"], t["head"], t.get("bias"), t["targets"], t["weights"], rule)}

        return loss

    inputs = _positions(generator, positions, bias)
    fast, plain = form(cross_entropy.head_cross_entropy), form(cross_entropy.cross_entropy_reference)
    return compare_functions(fast, plain, inputs, generator, device, dtype, frozen=("weights",))


def _token_loss(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, loss: TokenLoss) -> Comparison:
    def fast(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = t["hidden"], t["head"], t["bias"], t["targets"], t["weights"], rule
        return {"loss": token_loss.head_loss(*given, loss)[0]}

    def plain(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = t["hidden"], t["head"], t["bias"], t["targets"], t["weights"], rule
        return {"loss": token_loss.token_loss_reference(*given, loss)}

    rule = LogitRule(softcap=8.0)
    inputs = _positions(generator, token_loss.CHUNK + 7, bias=True)
    return compare_functions(fast, plain, inputs, generator, device, dtype, frozen=("weights",))


def _taught(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Comparison:
    """Distillation: a teacher of another width, whose head is a little longer than ours."""

    def form(function: Callable[..., Tensor]) -> Function:
        def loss(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
            teacher = Teacher(t["teacher"], t["their head"], None, LogitRule(), 0.4, 2.0, vocabulary=vocabulary - 3)
            given = t["hidden"], t["head"], None, t["targets"], t["weights"], LogitRule()
            return {"loss": function(*given, TokenLoss(teacher=teacher))}

        return loss

    inputs = _positions(generator, 29, bias=False)
    vocabulary = len(inputs["head"])
    inputs["teacher"] = randn(generator, 29, 9)
    inputs["their head"] = randn(generator, vocabulary + 2, 9, scale=0.5)
    fast, plain = form(lambda *given: token_loss.head_loss(*given)[0]), form(token_loss.token_loss_reference)
    return compare_functions(fast, plain, inputs, generator, device, dtype, frozen=("weights", "teacher", "their head"))


def _positions(generator: torch.Generator, positions: int, bias: bool) -> dict[str, Tensor]:
    """Hidden states, head, targets, and weights of which some are zero."""
    vocabulary, width = 61, 14
    weights = torch.rand(positions, generator=generator, dtype=torch.float64) + 0.1
    weights[1::5] = 0
    inputs = {
        "hidden": randn(generator, positions, width),
        "head": randn(generator, vocabulary, width, scale=0.5),
        "targets": torch.randint(0, vocabulary, (positions,), generator=generator),
        "weights": weights,
    }
    return inputs | ({"bias": randn(generator, vocabulary)} if bias else {})


def _quantized(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, kind: str) -> Comparison:
    """The layer on quantised weights is the layer on the numbers these stand for, looked up in the plain way."""
    plain_layer = nn.Linear(_IN, _OUT).to(torch.float32)
    with torch.no_grad():
        for parameter in plain_layer.parameters():
            parameter.copy_(randn(generator, *parameter.shape, scale=0.3))
    layer = QuantizedLinear(plain_layer.to(device), "nf4" if kind == "nf4" else "int8")
    weight, bias = _plain_weight(layer), layer.bias
    assert bias is not None
    behind: dict[str, Tensor] = {}
    rounded = {"x": randn(generator, 33, _IN).to(device).to(dtype)}
    plain_bias = bias.double()
    reference = results(
        lambda t: {"y": F.linear(t["x"], weight, plain_bias)}, rounded, torch.float64, (), generator, behind
    )
    ours = results(lambda t: {"y": layer(t["x"])}, rounded, dtype, (), generator, behind)
    return judge(ours, reference, dtype)


def _plain_weight(layer: QuantizedLinear) -> Tensor:
    """The numbers a layer's codes stand for: products of fp32, as both formats define them, then in float64."""
    if layer.kind == "int8":
        return (layer.codes.float() * (layer.scales.view(torch.float32) / 127)).double()
    scales = layer.scales.view(torch.float32)
    if layer.nested:
        offset = layer.offset.view(torch.float32)
        scales = quantized.scale_values(quantized.ScaleCodes(layer.scale_codes, scales, offset))
    codes = quantized.Nf4Codes(layer.codes, scales)
    shape = (layer.out_features, layer.in_features)
    return quantized.nf4_values_reference(replace(codes, scales=scales), shape, torch.float32).double()


def _dequantised(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Comparison:
    """The quick look-up is the plain one, bit for bit; sizes end in the middle of a block and of a byte."""
    ours: dict[str, Tensor | None] = {}
    theirs: dict[str, Tensor | None] = {}
    for shape in ((7, 64), (3, 43), (1, 1)):
        codes = quantized.nf4_codes(randn(generator, *shape).to(device).to(dtype))
        ours[f"weight {shape}"] = quantized.nf4_values(codes, shape, dtype)
        theirs[f"weight {shape}"] = quantized.nf4_values_reference(codes, shape, dtype)
    return same_bits(ours, theirs)
