"""Micro-batch and recomputation, from shapes and a memory limit alone: the same run gets the same plan everywhere.

Where all fits, nothing is computed twice and micro-batches are of the usual size. Where it does not, there are two ways
to need less: smaller micro-batches, and computing layers again. Of all pairs that fit, the one is taken that costs the
least time by this count, relative to a run that has all the memory it wants:

    1 + (tokens a micro-batch costs by being one) / (its tokens) + (share of a layer's work that is its forward pass)
        · (layers computed again) / (layers)

A micro-batch costs reading all weights, forward and backward, and merging adapters: as much as some tokens, more on a
GPU, which computes faster than it reads. Nothing here is timed, so that repeating a run repeats its bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tunesmith.errors import ResourceError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import trainable_parameters
from tunesmith.models.trunk import decoder_layers
from tunesmith.training.memory_model import MemoryForecast, MemoryModel, Row, row_tokens, weight_bytes
from tunesmith.training.memory_trace import Answering, Shapes
from tunesmith.training.objectives import Objective, cross_entropy
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.remedies import Remedy, remedies
from tunesmith.training.resources import settle, shown_bytes

_COST_OF_ONE = {"cpu": 40, "cuda": 300}
"""Tokens whose computation takes as long as a micro-batch takes beside its tokens: 2 passes over 4-byte weights at 20
operations per byte, and 2 over 2-byte weights at 300, in units of 4 operations per weight and token."""
_SMALLEST = 64
"""Tokens below which a micro-batch is not made smaller."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What fits, and why.

    recompute: decoder layers computed again in the backward pass. parts: predicted bytes by what takes them; they sum
    to the predicted peak. reasons: sentences for people.
    """

    micro_batch_tokens: int
    recompute: tuple[int, ...]
    predicted_peak_bytes: int
    limit_bytes: int
    parts: Mapping[str, int]
    reasons: tuple[str, ...]

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> MemoryPlan:
        """A plan that was kept as JSON (`dataclasses.asdict`)."""
        lists = {name: tuple(facts[name]) for name in ("recompute", "reasons")}
        return cls(**{**facts, **lists})

    def apply(self, plan: TrainingPlan) -> TrainingPlan:
        """The training plan with this micro-batch and recomputation."""
        return replace(plan, micro_batch_tokens=self.micro_batch_tokens, recompute_layers=self.recompute)


def plan_memory(
    model: LanguageModel | Shapes,
    rows: Sequence[Row],
    plan: TrainingPlan,
    limit_bytes: int,
    *,
    objective: Objective = cross_entropy,
    recompute: Literal["auto", "on", "off"] = "auto",
    fixed: bool = False,
    answers: Answering | None = None,
    held_bytes: int | None = None,
) -> MemoryPlan:
    """Choose micro-batch and recomputation so that the training stays below `limit_bytes`.

    Parameters
    ----------
    model: as it will be trained, adapters attached; or `Shapes` of the base that were changed so, to plan before
        anything is attached to the base itself. rows: those it learns.
    plan: of the training; its `micro_batch_tokens` is the usual size, which becomes smaller only where it must.
    recompute: on computes every layer again, off none. fixed: the micro-batch is the user's and stays.
    answers: what evaluations during training answer at once, if they do.
    held_bytes: what the process holds with the model loaded (`resources.settle`); measured where not given.

    Raises
    ------
    ResourceError: nothing fits; says what would.
    RuntimeError: of `Shapes`, where something cannot run without numbers; plan with the model itself then.
    """
    if held_bytes is None:
        held_bytes = _held(model)
    memory = MemoryModel(model, rows, plan, objective, held_bytes, answers)
    layers = tuple(range(memory.model.frozen_layers, len(decoder_layers(memory.model.trunk))))
    first = layers if recompute == "on" else ()
    usual = memory.forecast(plan.micro_batch_tokens, first)
    if usual.peak_bytes <= limit_bytes:
        why = "every layer is computed again, as asked for" if first else "nothing is computed twice"
        return _planned(
            plan.micro_batch_tokens, first, usual, limit_bytes, f"{_size(usual)} of {shown_bytes(limit_bytes)}; {why}"
        )
    best = _cheapest(memory, plan, limit_bytes, layers, recompute, fixed)
    if best is None:
        smallest = plan.micro_batch_tokens if fixed else _ladder(plan.micro_batch_tokens, rows)[-1]
        least = memory.forecast(smallest, () if recompute == "off" else layers)
        raise _refusal(least, limit_bytes, remedies(memory, limit_bytes, smallest, layers, recompute != "off"), fixed)
    reasons = [f"{_size(usual)} in micro-batches of {plan.micro_batch_tokens} tokens is more than the limit of "
               f"{shown_bytes(limit_bytes)}"]  # fmt: skip
    if best.tokens < plan.micro_batch_tokens:
        reasons.append(f"micro-batches of at most {best.tokens} tokens instead")
    if best.count and recompute == "auto":
        reasons.append(f"{best.count} of {len(layers)} layers computed again: least time of what fits")
    return _planned(best.tokens, best.layers, best.forecast, limit_bytes, *reasons)


def _held(model: LanguageModel | Shapes) -> int:
    """What the process holds with the model, as shapes were changed, loaded."""
    if isinstance(model, Shapes):
        return settle(model.source) + weight_bytes(model.model) - weight_bytes(model.source)
    return settle(model.model)


@dataclass(frozen=True, slots=True)
class _Option:
    tokens: int
    layers: tuple[int, ...]
    forecast: MemoryForecast
    cost: float

    @property
    def count(self) -> int:
        return len(self.layers)


def _cheapest(
    memory: MemoryModel,
    plan: TrainingPlan,
    limit: int,
    layers: tuple[int, ...],
    recompute: Literal["auto", "on", "off"],
    fixed: bool,
) -> _Option | None:
    """The cheapest of all sizes of micro-batch, each with the fewest layers computed again; None where nothing fits.

    From the smallest on: a larger one needs as many layers at least, so the search ends where that many cost too much.
    """
    usual = plan.micro_batch_tokens
    per_step = float(np.mean([row_tokens(row) for row in memory.rows])) * plan.batch_size
    of_one, share = _COST_OF_ONE[memory.model.device.type], _forward_share(memory.model) / max(1, len(layers))
    best: _Option | None = None
    for tokens in [usual] if fixed else reversed(_ladder(usual, memory.rows)):
        alone = 1 + of_one / min(tokens, per_step)
        if best is not None and alone + share * best.count >= best.cost:
            break
        again = _fewest_layers(memory, tokens, limit, layers, recompute, best.count if best is not None else 0)
        if again is None:
            break
        cost = alone + share * len(again)
        if best is None or cost < best.cost:
            best = _Option(tokens, again, memory.forecast(tokens, again), cost)
    return best


def _fewest_layers(
    memory: MemoryModel,
    tokens: int,
    limit: int,
    layers: tuple[int, ...],
    recompute: Literal["auto", "on", "off"],
    at_least: int = 0,
) -> tuple[int, ...] | None:
    """The fewest lowest layers that must be computed again to fit, or None where that is not enough.

    The lowest, as the backward pass comes to them last: what they need for a moment meets the least of the rest.
    """
    if recompute == "on":
        return layers if memory.forecast(tokens, layers).peak_bytes <= limit else None
    none = memory.forecast(tokens).peak_bytes
    if none <= limit:
        return ()
    if recompute == "off":
        return None
    everything = memory.forecast(tokens, layers).peak_bytes
    if everything > limit:
        return None
    least = max(1, at_least)
    # What is kept grows by the layer, up to the last few: begin at the share of a straight line.
    count = min(len(layers), max(least, math.ceil(len(layers) * (none - limit) / max(1, none - everything))))
    while count < len(layers) and memory.forecast(tokens, layers[:count]).peak_bytes > limit:
        count += 1
    while count > least and memory.forecast(tokens, layers[: count - 1]).peak_bytes <= limit:
        count -= 1
    return layers[:count]


def _ladder(usual: int, rows: Sequence[Row]) -> list[int]:
    """Sizes of micro-batch to try: halves, down to the longest row, which is never divided."""
    smallest = max(_SMALLEST, max(row_tokens(row) for row in rows))
    sizes = [usual]
    while sizes[-1] > smallest:
        sizes.append(max(smallest, sizes[-1] // 2))
    return sizes


def _forward_share(model: LanguageModel) -> float:
    """A forward pass as a share of a layer's work: 2 of 6 operations per weight where weights learn, else 2 of 4."""
    trained = sum(p.numel() for p in trainable_parameters(model.model).values())
    return 1 / 3 if 2 * trained > sum(p.numel() for p in model.model.parameters()) else 1 / 2


def _planned(tokens: int, layers: tuple[int, ...], forecast: MemoryForecast, limit: int, *reasons: str) -> MemoryPlan:
    return MemoryPlan(tokens, layers, forecast.peak_bytes, limit, forecast.parts, reasons)


def _size(forecast: MemoryForecast) -> str:
    return f"about {shown_bytes(forecast.peak_bytes)}"


def _refusal(least: MemoryForecast, limit: int, found: Sequence[Remedy], fixed: bool) -> ResourceError:
    helping = [r for r in found if r.fits]
    listed = helping or list(found)
    said = "; ".join(f"{r.change} ({shown_bytes(r.need_bytes)}{r.price})" for r in listed)
    if not helping:
        said = f"nothing of this alone is enough: {said}" if said else "use a smaller base"
    largest = sorted(least.parts.items(), key=lambda part: -part[1])[:4]
    shown = ", ".join(f"{name} {shown_bytes(size)}" for name, size in largest if size)
    return ResourceError(
        f"training needs about {shown_bytes(least.peak_bytes)} at least ({shown}); "
        f"{shown_bytes(limit)} is what it may take",
        where="train.memory_limit",
        expected="a larger limit" + (", or train.micro_batch_tokens: auto" if fixed else ""),
        fix=said,
    )
