"""From a plan to an optimiser: which rule, weight decay and learning rate each parameter gets, and where it lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

from torch import nn
from torch.distributed.tensor import DTensor

from tunesmith.errors import RecipeError
from tunesmith.training.optimizers import flat as flat_buffers
from tunesmith.training.optimizers.adamw import AdamW
from tunesmith.training.optimizers.adamw8 import SMALLEST, AdamW8
from tunesmith.training.optimizers.cells import Cell, Part, Rule, local, working_dtype
from tunesmith.training.optimizers.flat import FlatBuffer
from tunesmith.training.optimizers.muon import Muon
from tunesmith.training.optimizers.optimizer import Optimizer

_INSIDE_A_LAYER = re.compile(r"\.\d+\.")
"""Names of parameters that belong to a numbered layer; embeddings, head and last norm have no number."""


class OptimizerPlan(Protocol):
    """What of a training plan an optimiser is made from; see `recipe/schema.py` for the meaning."""

    @property
    def optimizer(self) -> Literal["adamw", "adamw_8bit", "muon"]: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def lora_plus_ratio(self) -> float: ...
    @property
    def optimizer_in_backward(self) -> bool: ...


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], plan: OptimizerPlan, *, flat: bool | None = None
) -> Optimizer:
    """The plan's optimiser over trainable parameters, each updated once however many names it has.

    Weight decay is on matrices only. Matrices named `lora_B` learn `lora_plus_ratio` times as fast as the rest
    (LoRA+, arXiv 2402.12354). Parameters of half precision get a float32 master, and sum gradients in float32.

    flat: whether parameters and gradients move into flat buffers (`flat.FlatBuffer`); by default where that pays, and
    never with `optimizer_in_backward`. With flat buffers every parameter always has a gradient, zero where nothing
    reached it.

    Raises `RecipeError` for parameters of an integer type, and for Muon on sharded ones.
    """
    entries = list(_entries(parameters, plan))
    if flat is None:
        flat = not plan.optimizer_in_backward and flat_buffers.worth_it([e.parameter for e in entries])
    if not flat:
        return Optimizer([_own_cell(e) for e in entries], [], plan.learning_rate)
    cells: list[Cell] = []
    buffers = []
    entries.sort(key=_Entry.order)
    for _, members in groupby(entries, key=lambda e: (str(e.parameter.device), e.parameter.dtype)):
        together = list(members)
        buffer = FlatBuffer([e.parameter for e in together])
        buffers.append(buffer)
        cells.extend(_flat_cells(together, buffer))
    return Optimizer(cells, buffers, plan.learning_rate)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A parameter and how it is to be updated."""

    name: str
    parameter: nn.Parameter
    rule: Rule
    decay: float
    ratio: float

    def order(self) -> tuple[str, str, str, float, float]:
        """What is updated alike lies together; within that the order of the model stays."""
        kind = type(self.rule).__name__
        return str(self.parameter.device), str(self.parameter.dtype), kind, self.decay, self.ratio


def _entries(parameters: Mapping[str, nn.Parameter], plan: OptimizerPlan) -> Iterator[_Entry]:
    adamw = AdamW(plan.betas, plan.epsilon)
    large: Rule = adamw
    if plan.optimizer == "adamw_8bit":
        large = AdamW8(plan.betas, plan.epsilon)
    elif plan.optimizer == "muon":
        large = Muon()
    seen: set[int] = set()
    for name, parameter in parameters.items():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if not parameter.is_floating_point():
            raise RecipeError(
                f"{name} is of type {parameter.dtype} and cannot be trained",
                where="method",
                fix="train an adapter on the quantised base (method: qlora)",
            )
        if plan.optimizer == "muon" and isinstance(parameter, DTensor):
            raise RecipeError(
                "Muon needs whole matrices, and each process has a share of them only",
                where="train.optimizer",
                fix="use train.optimizer: adamw, or train.sharding: none",
            )
        matrix = parameter.ndim >= 2
        yield _Entry(
            name,
            parameter,
            large if _is_large(name, parameter, plan) else adamw,
            plan.weight_decay if matrix else 0.0,
            plan.lora_plus_ratio if name.endswith(("lora_B", "lora_B.weight")) else 1.0,
        )


def _is_large(name: str, parameter: nn.Parameter, plan: OptimizerPlan) -> bool:
    """Whether the parameter gets the rule the plan names, not plain AdamW."""
    if plan.optimizer == "muon":
        return parameter.ndim == 2 and bool(_INSIDE_A_LAYER.search(name))
    return local(parameter).numel() >= SMALLEST


def _own_cell(entry: _Entry) -> Cell:
    value = local(entry.parameter)
    dtype = working_dtype(value.dtype)
    if dtype != value.dtype:
        entry.parameter.grad_dtype = dtype
        value = value.to(dtype)
    return Cell((Part(entry.name, entry.parameter),), value, None, entry.rule, entry.decay, entry.ratio)


def _flat_cells(entries: Sequence[_Entry], buffer: FlatBuffer) -> Iterator[Cell]:
    """Cells over a buffer: a run of parameters for elementwise rules, one matrix at a time for Muon."""
    places = list(zip(entries, buffer.starts, strict=True))
    for rule, decay, ratio in dict.fromkeys((e.rule, e.decay, e.ratio) for e in entries):
        run = [(e, start) for e, start in places if (e.rule, e.decay, e.ratio) == (rule, decay, ratio)]
        single = isinstance(rule, Muon | AdamW8)
        for part in [[place] for place in run] if single else [run]:
            (first, start), (last, behind) = part[0], part[-1]
            stop = behind + last.parameter.numel()
            value, gradient = buffer.values[start:stop], buffer.gradients[start:stop]
            if single:
                value, gradient = value.view(first.parameter.shape), gradient.view(first.parameter.shape)
            parts = tuple(Part(e.name, e.parameter, at - start) for e, at in part)
            yield Cell(parts, value, gradient, rule, decay, ratio)
