"""Checks of a whole training step: our loss and every gradient, against plain `transformers` in float64.

Our side is what training runs: the packed stream, fused layers and products where they apply, adapters, the loss at
supervised positions only, micro-batches. The other side is `plain.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import use_fused_layers
from tunesmith.models.lora import Attached, LoraLinear, LoraSettings, attach_lora, trainable_parameters
from tunesmith.models.quantized import Kind, dequantize_base, quantize_base
from tunesmith.models.trunk import decoder_layers
from tunesmith.ops.product import use_fast_linears
from tunesmith.text.types import Group, Sample
from tunesmith.training.gate.compare import LIMITS, Comparison, Tensors, judge, room_used, same_bits, together
from tunesmith.training.gate.models import FAMILIES, Source, small
from tunesmith.training.gate.plain import PlainAdapter, plain_step, with_adapters
from tunesmith.training.gate.types import EVERY, Check
from tunesmith.training.gate.wide import wide
from tunesmith.training.graphs import MicroBatchGraphs, Uncaptured, graph_device
from tunesmith.training.memory_model import row_tokens
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.recompute import recompute_layers
from tunesmith.training.step import accumulate_gradients
from tunesmith.training.trunk_cache import trunk_cache

GROUP = "model step"
LORA = LoraSettings(rank=3, alpha=5.0)
_PLAN = TrainingPlan(
    steps=1, batch_size=16, learning_rate=1e-3, seed=0, micro_batch_tokens=96, share_prefixes=True
)  # fmt: skip

_TIMES = 4
"""Repetitions in fixed shapes, so that what is compared can be a replay."""
_DRAWS = 6
"""Batches in half precision, where errors are as random as the numbers."""

Documents = Callable[[torch.Generator, int], list[Sample]]
"""Random documents over a vocabulary of a size."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is taken.

    lora: None trains every weight. cached: what the frozen layers below compute comes from the disk. recompute: every
    layer is computed again in the backward pass. masked: documents without anything to learn are computed too.
    quantize: how the frozen weights are held.
    """

    lora: LoraSettings | None = LORA
    cached: bool = False
    recompute: bool = False
    masked: bool = False
    fixed: bool = False
    quantize: Kind | None = None
    plan: TrainingPlan = _PLAN


FULL = Way(lora=None)
_LAST = Way(lora=replace(LORA, last_layers=1))


def step_checks() -> list[Check]:
    """Steps of small models: each architecture, each kind of batch, each way to train."""
    llama, gemma, gpt = FAMILIES[0], FAMILIES[3], FAMILIES[4]
    ways = {"full": FULL, "LoRA": Way()}
    others = {
        "DoRA": Way(lora=replace(LORA, use_dora=True)),
        "LoRA on nf4 weights": Way(quantize="nf4"),
        "LoRA in the last layer": _LAST,
        "LoRA in the last layer, the others cached": replace(_LAST, cached=True),
    }
    batches: dict[str, tuple[Documents, Way]] = {
        "nothing supervised": (partial(documents, supervised=0.0), Way(masked=True)),
        "everything supervised": (partial(documents, supervised=1.0), Way()),
        "one giant document": (one_giant, Way()),
        "shared prefixes": (sharing, Way()),
        "in fixed shapes": (mixed, Way(fixed=True)),
    }
    checks = [_check(f"{family}: {words}", family, way, mixed) for family in FAMILIES for words, way in ways.items()]
    checks += [_check(f"{llama}: {words}", llama, way, mixed) for words, way in others.items()]
    checks.append(_check(f"{gpt}: LoRA on int8 weights", gpt, Way(quantize="int8"), mixed))
    checks += [
        _check(f"{family}: LoRA, {words}", family, way, batch)
        for family in (llama, gemma)
        for words, (batch, way) in batches.items()
    ]
    return [
        *checks,
        *(Check(f"{f}: recomputed or not, bit for bit", GROUP, partial(_recomputed, f)) for f in (llama, gemma)),
    ]


def _check(name: str, family: str, way: Way, batch: Documents) -> Check:
    def run(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Comparison:
        source = small(family, generator)
        return compare_step(source, way, drawn(batch, source, generator, dtype), generator, device, dtype)

    return Check(name, GROUP, run, EVERY)


def drawn(batch: Documents, source: Source, generator: torch.Generator, dtype: torch.dtype) -> list[list[Sample]]:
    """One batch, or in half precision several."""
    return [batch(generator, source.vocabulary) for _ in range(1 if dtype in LIMITS else _DRAWS)]


def compare_step(
    source: Source,
    way: Way,
    batches: Sequence[Sequence[Sample]],
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    *,
    widen: bool = False,
) -> Comparison:
    """Loss and gradients of one step on each of `batches`, with random adapters; errors are pooled over batches.

    One model is in memory at a time. `widen`: in fp32, let plain torch's own error in fp32 widen the limit, for
    deep models with weights that were not drawn for this.
    """
    ours, adapters = our_steps(source, way, batches, generator, device, dtype)

    def plain(precision: torch.dtype) -> Tensors:
        return _plain_steps(source, way, batches, adapters, device, precision, dtype)

    reference = plain(torch.float64)
    if dtype not in LIMITS:
        return judge(ours, reference, dtype, plain(dtype), rows=True)
    found = judge(ours, reference, dtype, rows=True)
    if widen and dtype == torch.float32 and room_used(found) > 1:
        return judge(ours, reference, dtype, plain(dtype), rows=True)
    return found


def our_steps(
    source: Source,
    way: Way,
    batches: Sequence[Sequence[Sample]],
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    *,
    precise: bool = True,
) -> tuple[Tensors, dict[str, PlainAdapter]]:
    """Our `loss` and `d NAME` for every trained tensor, and the random adapters that were used, by path.

    precise: a model in float64 rounds nowhere, as `wide` has it.
    """
    held = _held(way, dtype, device)
    # int8 weights are products of fp32 by definition: widened, they would be other weights.
    precise = precise and dtype == torch.float64 and way.quantize != "int8"
    model = source.open(held, held, device)
    if way.quantize is not None:
        quantize_base(model, way.quantize)
    use_fast_linears(model)
    attached = None if way.lora is None else attach_lora(model, way.lora, seed=0)
    if attached is not None:
        _randomise(attached, generator)
    use_fused_layers(model)
    language_model = LanguageModel(model)
    language_model.verify()
    model.train(not language_model.draws_chance)
    layers = range(len(decoder_layers(language_model.trunk))) if way.recompute else ()
    trained = trainable_parameters(model)
    found: list[Tensors] = []
    with recompute_layers(model, layers), wide() if precise else nullcontext():
        for samples in batches:
            model.zero_grad(set_to_none=True)
            loss = torch.tensor(_gradients(language_model, way, samples, dtype), dtype=torch.float64, device=device)
            found.append({"loss": loss, **{f"d {name}": parameter.grad for name, parameter in trained.items()}})
    adapters = {} if attached is None else {path: _plain_adapter(layer) for path, layer in attached.layers.items()}
    return together(found), adapters


def _in_fixed_shapes(model: LanguageModel, rows: Sequence[Sample | Group], plan: TrainingPlan) -> float:
    """As `_gradients`, of the last of several times: on a GPU that is a replayed graph."""
    trained = trainable_parameters(model.model).values()
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    device = graph_device(model.device) or Uncaptured()
    graphs = MicroBatchGraphs(model, plan, max(map(row_tokens, rows)), device, lambda event: None, warm_ups=1)
    loss = 0.0
    for _ in range(_TIMES):
        for parameter in trained:
            if parameter.grad is not None:
                parameter.grad.zero_()
        loss = accumulate_gradients(model, rows, plan, graphs=graphs).read().loss
    return loss


def _gradients(model: LanguageModel, way: Way, samples: Sequence[Sample], dtype: torch.dtype) -> float:
    """The loss sum; gradients are in the parameters' `.grad`."""
    plan = way.plan if dtype in LIMITS else replace(way.plan, precision="bf16")
    autocast = None if dtype in LIMITS else dtype
    rows = [Group((sample,)) for sample in samples] if way.masked else samples
    if way.fixed:
        return _in_fixed_shapes(model, rows, plan)
    if not way.cached:
        return accumulate_gradients(model, rows, plan).read().loss
    with tempfile.TemporaryDirectory(prefix="tunesmith-gate-") as folder:
        model.use_trunk_cache(trunk_cache(model, rows, Path(folder) / "trunk", base="gate", autocast=autocast))
        try:
            return accumulate_gradients(model, rows, plan).read().loss
        finally:
            model.use_trunk_cache(None)


def _held(way: Way, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What weights are held in where products are computed in `dtype`.

    In half precision (autocast) those that are trained are fp32, and so is a base on a CPU.
    """
    return torch.float32 if dtype not in LIMITS and (way.lora is None or device.type == "cpu") else dtype


def _plain_steps(
    source: Source,
    way: Way,
    batches: Sequence[Sequence[Sample]],
    adapters: dict[str, PlainAdapter],
    device: torch.device,
    precision: torch.dtype,
    ours: torch.dtype,
) -> Tensors:
    """The same by plain torch in `precision`, beginning with the numbers of a model for steps in `ours`."""
    held = _held(way, precision, device)
    model = source.open(held, _held(way, ours, device), device)
    if way.quantize is not None:  # on the numbers that the codes stand for
        quantize_base(model, way.quantize)
        dequantize_base(model)
    autocast = None if precision in LIMITS else precision
    if way.lora is None:
        learnt: dict[str, Tensor] = dict(model.named_parameters())
        return together([plain_step(model, samples, learnt, autocast) for samples in batches])
    model.requires_grad_(False)
    own = {path: one.to(torch.promote_types(held, torch.float32)) for path, one in adapters.items()}
    learnt = {name: t for path, one in own.items() for name, t in one.tensors(path).items()}
    with with_adapters(model, own):
        return together([plain_step(model, samples, learnt, autocast) for samples in batches])


@torch.no_grad()
def _randomise(attached: Attached, generator: torch.Generator) -> None:
    """Give every adapter an update of about a third of its weight's size, and magnitudes other than the norms."""
    for layer in attached.layers.values():
        rank, width = layer.lora_A.shape
        size = float(layer.weight.float().std()) / layer.scaling
        for tensor, scale in ((layer.lora_A, width**-0.5), (layer.lora_B, 0.3 * size * (width / rank) ** 0.5)):
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale
            tensor.copy_(drawn.float())  # in each type the same numbers
        if layer.magnitude is not None:
            drawn = torch.randn(layer.magnitude.shape, generator=generator, dtype=torch.float64)
            layer.magnitude.mul_(1 + 0.1 * drawn.to(layer.magnitude))


def _plain_adapter(layer: LoraLinear) -> PlainAdapter:
    copies = (None if t is None else t.detach().clone() for t in (layer.lora_A, layer.lora_B, layer.magnitude))
    a, b, magnitude = copies
    assert a is not None and b is not None
    return PlainAdapter(a, b, layer.scaling, magnitude)


def _recomputed(family: str, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Comparison:
    """Computing activations again in the backward pass changes no bit."""
    source = small(family, generator)
    samples = mixed(generator, source.vocabulary)
    state = generator.get_state()
    # What is computed again in the backward pass lies outside of `wide`, so here everything does.
    kept, _ = our_steps(source, Way(), [samples], generator, device, dtype, precise=False)
    generator.set_state(state)
    again, _ = our_steps(source, Way(recompute=True), [samples], generator, device, dtype, precise=False)
    return same_bits(again, kept)


def documents(
    generator: torch.Generator,
    vocabulary: int,
    lengths: Sequence[int] = (1, 14, 3, 22, 9, 1, 17),
    supervised: float = 0.6,
) -> list[Sample]:
    """Random documents of these lengths, with a share of their tokens supervised, by weights that differ."""
    samples = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, vocabulary, (length,), generator=generator).numpy()
        chosen = torch.rand(length, generator=generator) < supervised
        weights = (chosen * torch.randint(1, 4, (length,), generator=generator)).float().numpy()
        weights[0] = 0
        samples.append(Sample(ids, weights, f"row {number}"))
    return samples


def one_giant(generator: torch.Generator, vocabulary: int) -> list[Sample]:
    """A single document, longer than a micro-batch."""
    return documents(generator, vocabulary, (150,))


def sharing(
    generator: torch.Generator, vocabulary: int, beginning: int = 25, lengths: Sequence[int] = (8, 1, 13)
) -> list[Sample]:
    """Documents that begin alike, one of which is nothing but that beginning, and others."""
    begin = documents(generator, vocabulary, (beginning,))[0]
    rows = [begin]
    for row in documents(generator, vocabulary, lengths):
        rows.append(Sample(np.r_[begin.ids, row.ids], np.r_[begin.weights, row.weights], row.example_id))
    return [*rows, *documents(generator, vocabulary, (11, 1))]


def mixed(generator: torch.Generator, vocabulary: int) -> list[Sample]:
    """Some of everything: one-token documents, a long one, all or nothing supervised, a shared beginning."""
    return [
        *documents(generator, vocabulary),
        *documents(generator, vocabulary, (12,), supervised=0.0),
        *documents(generator, vocabulary, (12,), supervised=1.0),
        *documents(generator, vocabulary, (70,)),
        *sharing(generator, vocabulary),
    ]
