"""One optimiser step: the step's rows in streams, gradients of summed losses, one division, clipping, the update.

Losses are summed over streams (and devices) and divided once, by the step's total weight. So neither the size of a
stream nor the number of devices changes what is learnt; where memory does not suffice in spite of the plan, streams
are halved and the same step is computed again.

On a GPU nothing in a step waits for the device: `Stepper.start` leaves loss and gradient norm there, and `Stepper.read`
fetches them steps later. Should they not be finite by then, the update was left out, and so were all after it: weights
are those before the step that went wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import RecipeError, ResourceError, TunesmithError
from tunesmith.models.forward import LanguageModel
from tunesmith.text.types import Group, Sample
from tunesmith.training import processes
from tunesmith.training.batching import Batch, micro_batches
from tunesmith.training.graphs import MicroBatchGraphs
from tunesmith.training.objectives import LossSum, Objective, cross_entropy
from tunesmith.training.objectives.neftune import noisy_embeddings
from tunesmith.training.optimizers import (
    InBackward,
    Optimizer,
    grad_norm_and_clip,
    set_learning_rate,
    why_not_in_backward,
)
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.precision import LossScaler, precision
from tunesmith.training.recompute import recompute_layers
from tunesmith.training.sharding import ShardedModel

Row = Sample | Group
_SMALLEST_STREAM = 64
"""Tokens below which halving a stream cannot help: it is one short document."""


class DivergenceError(TunesmithError):
    """Loss or gradient became infinite or not a number.

    Attributes
    ----------
    step: 1-based number of the step. rows: ids of its rows whose own loss is not finite, at weights that are.
    """

    exit_code = 5

    def __init__(self, what: str, *, step: int, rows: tuple[str, ...], where: str, fix: str) -> None:
        super().__init__(what, where=where, fix=fix)
        self.step, self.rows = step, rows


@dataclass(slots=True)
class Totals:
    """Sums over the streams of a step. `tokens`: of the rows; `computed`: of the streams (less, where they share).

    On a GPU loss and metrics are 0-dim float64 tensors there, until they are `read`.
    """

    loss: float | Tensor = 0.0
    weight: float = 0.0
    tokens: int = 0
    computed: int = 0
    metrics: dict[str, float | Tensor] = field(default_factory=dict)

    def read(self) -> Sums:
        """The sums as numbers, waiting for the device."""
        metrics = {name: float(value) for name, value in self.metrics.items()}
        return Sums(float(self.loss), self.weight, self.tokens, self.computed, metrics)


@dataclass(frozen=True, slots=True)
class Sums:
    """`Totals` as numbers."""

    loss: float
    weight: float
    tokens: int
    computed: int
    metrics: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Loss per weight; 0 where nothing was learnt."""
        return self.loss / self.weight if self.weight else 0.0

    def means(self) -> dict[str, float]:
        """Metrics per weight; none where nothing was learnt."""
        return {name: value / self.weight for name, value in self.metrics.items()} if self.weight else {}


@dataclass(frozen=True, slots=True)
class Started:
    """A step that was taken, its numbers perhaps still on the device: see `StepFacts`. `number`: 0-based."""

    number: int
    rows: Sequence[Row]
    totals: Totals
    grad_norm: float | Tensor
    learning_rate: float


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What one optimiser step was. `grad_norm` is that of the mean loss, before clipping."""

    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    computed_tokens: int
    metrics: Mapping[str, float]


class Stepper:
    """Takes optimiser steps on a model's trainable parameters.

    `streams`: largest stream in tokens; it becomes smaller where memory did not suffice, and is kept in checkpoints.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Optimizer,
        plan: TrainingPlan,
        objective: Objective,
        tell: Callable[[dict[str, Any]], None],
        graphs: MicroBatchGraphs | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.plan, self.objective, self.tell = plan, objective, tell
        self.streams = plan.micro_batch_tokens
        self.scaler = LossScaler() if plan.precision == "fp16" else None
        self.graphs = graphs
        self._stopped = torch.zeros((), dtype=torch.bool, device=model.device)

    @property
    def read_every(self) -> int:
        """Steps that may be started before the first of them is read."""
        waits = self.scaler is not None or self.plan.optimizer_in_backward or processes.count() > 1
        return 1 if waits else self.plan.read_every

    def step(self, rows: Sequence[Row], number: int) -> StepFacts:
        """Learn `rows` in 0-based step `number`. Raises `DivergenceError`, and then has changed no weight."""
        return self.read(self.start(rows, number))

    def start(self, rows: Sequence[Row], number: int) -> Started:
        """As `step`, without reading what came of it. Steps are to be read in their order, at last by `read_every`."""
        self.model.model.train()
        torch.manual_seed(processes.step_seed(self.plan.seed, number))
        learning_rate = self.plan.learning_rate_at(number)
        set_learning_rate(self.optimizer, learning_rate)
        totals: Totals
        grad_norm: float | Tensor
        with recompute_layers(self.model.model, self.plan.recompute_layers):
            if self.plan.optimizer_in_backward:
                totals, grad_norm = self._update_in_backward(rows, number)
            elif self.read_every > 1:
                totals, grad_norm = self._update_without_waiting(rows, number)
            else:
                totals, grad_norm = self._update(rows, number)
        return Started(number, rows, totals, grad_norm, learning_rate)

    def read(self, started: Started) -> StepFacts:
        """What came of a step. Raises `DivergenceError`; weights are then those before it."""
        sums, grad_norm = started.totals.read(), float(started.grad_norm)
        if not (math.isfinite(sums.loss) and math.isfinite(grad_norm)):
            raise self._divergence(started.rows, started.number, sums.mean, grad_norm)
        return StepFacts(sums.mean, grad_norm, started.learning_rate, sums.tokens, sums.computed, sums.means())

    def _update_without_waiting(self, rows: Sequence[Row], number: int) -> tuple[Totals, Tensor | float]:
        """As `_update` in one process; whether all is finite is decided on the device, and stays decided."""
        totals = self._gradients(rows, number)
        if not totals.weight or not math.isfinite(totals.weight):
            self._stopped |= not math.isfinite(totals.weight)
            self.optimizer.zero_grad()
            return totals, 0.0
        norm = self.optimizer.clip(self.plan.max_grad_norm, 1 / totals.weight)
        finite = torch.isfinite(norm) & torch.isfinite(torch.as_tensor(totals.loss, device=norm.device))
        self._stopped = self._stopped | ~finite.to(self._stopped.device)
        self.optimizer.leave_out(self._stopped.to(norm.device))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return totals, norm

    def _update(self, rows: Sequence[Row], number: int) -> tuple[Totals, float]:
        """Gradients of all streams and processes, then the update, which is left out where they are not finite."""
        totals = self._gradients(processes.share(rows), number)
        if processes.count() > 1:
            own = totals.read()
            sums = [own.loss, own.weight, float(own.tokens), float(own.computed)]
            loss, weight, tokens, computed = processes.sum_gradients(self.optimizer.gradients(), sums)
            totals = Totals(loss, weight, round(tokens), round(computed), {**_summed(processes.gather(own.metrics))})
        if not totals.weight or not math.isfinite(totals.loss) or not math.isfinite(totals.weight):
            self.optimizer.zero_grad()
            return totals, 0.0
        scale = self.scaler.scale if self.scaler is not None else 1.0
        grad_norm = grad_norm_and_clip(self.optimizer, self.plan.max_grad_norm, 1 / (totals.weight * scale))
        if self.scaler is not None and not self.scaler.update(grad_norm) and not self.scaler.exhausted:
            grad_norm = 0.0  # the scale was too large: the step is left out, and the next has half of it
        elif math.isfinite(grad_norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return totals, grad_norm

    def _update_in_backward(self, rows: Sequence[Row], number: int) -> tuple[Totals, float]:
        """Each tensor updated as soon as its gradient is there. The step must be one stream of supervised tokens."""
        taught = [row for row in rows if row.supervised]
        streams = sum(1 for _ in micro_batches(taught, self.streams, share_prefixes=self.plan.share_prefixes))
        reason = why_not_in_backward(self.plan, streams=streams, processes=processes.count())
        if reason is None and any(isinstance(row, Group) for row in rows):
            reason = "what the sum of losses is divided by must be known before, and is not for pairs"
        if reason is not None:
            raise RecipeError(reason, where="train.optimizer_in_backward")
        weight = float(sum(row.weights.sum(dtype="float64") for row in taught if isinstance(row, Sample)))
        if not weight:
            return Totals(), 0.0
        with InBackward(self.optimizer) as updates:
            updates.prepare(1 / weight)
            totals = accumulate_gradients(self.model, taught, self.plan, self.objective, self.streams, number)
            return totals, updates.grad_norm()

    def _gradients(self, rows: Sequence[Row], number: int) -> Totals:
        while True:
            try:
                scale = self.scaler.scale if self.scaler is not None else 1.0
                return accumulate_gradients(
                    self.model, rows, self.plan, self.objective, self.streams, number, scale, self.graphs
                )
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if self.streams <= _SMALLEST_STREAM:
                    raise ResourceError(
                        "not enough memory for a single short document",
                        where=str(error).splitlines()[0][:200],
                        fix="close other programs, or set method.quantize, a smaller method.rank or another base",
                    ) from error
            self.optimizer.zero_grad()
            self.streams //= 2
            if self.graphs is not None:
                self.graphs.release()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.tell({"kind": "out_of_memory", "micro_batch_tokens": self.streams})

    def _divergence(self, rows: Sequence[Row], number: int, loss: float, grad_norm: float) -> DivergenceError:
        taught = [row for row in rows if row.supervised or isinstance(row, Group)]
        bad = [row.example_id for row in taught if not math.isfinite(mean_loss(self.model, [row], self.objective))]
        named = bad or [row.example_id for row in rows]
        which = "rows whose own loss is not finite" if bad else "rows"
        return DivergenceError(
            f"the loss is {loss}, the gradient norm {grad_norm}",
            step=number + 1,
            rows=tuple(bad),
            where=f"step {number + 1}, {which}: {', '.join(named[:8])}{', …' if len(named) > 8 else ''}",
            fix=("look at these rows, or " if bad else "")
            + "lower train.learning_rate; the state before this step is kept",
        )


def accumulate_gradients(
    model: LanguageModel,
    rows: Sequence[Row],
    plan: TrainingPlan,
    objective: Objective = cross_entropy,
    streams: int | None = None,
    number: int = 0,
    scale: float = 1.0,
    graphs: MicroBatchGraphs | None = None,
) -> Totals:
    """Add the gradients of the rows' summed loss, times `scale`, to `.grad`, in streams of at most `streams` tokens.

    `number`: of the step, from which noise on embeddings is drawn. `graphs`: what computes streams in fixed shapes.
    """
    totals = Totals()
    if graphs is not None:
        budget = streams or plan.micro_batch_tokens
        with model.packed():
            for batch in micro_batches(rows, budget, share_prefixes=False):
                _add(totals, batch, graphs.accumulate(batch, budget, scale))
        return totals
    for batch, said in _losses(model, rows, plan, objective, streams or plan.micro_batch_tokens, number):
        loss = said.loss * scale if scale != 1.0 else said.loss
        loss.backward()  # type: ignore[no-untyped-call]
        _add(totals, batch, said)
    return totals


def mean_loss(
    model: LanguageModel,
    rows: Sequence[Row],
    objective: Objective = cross_entropy,
    plan: TrainingPlan | None = None,
) -> float:
    """Mean loss per weight, without gradients; not a number where nothing is supervised."""
    sums = loss_sums(model, rows, objective, plan)
    return sums.mean if sums.weight else math.nan


def loss_sums(
    model: LanguageModel,
    rows: Sequence[Row],
    objective: Objective = cross_entropy,
    plan: TrainingPlan | None = None,
) -> Sums:
    """Loss, weight and the objective's metrics over rows, without gradients. The model is in evaluation mode then."""
    plan = plan or TrainingPlan(steps=1, batch_size=1, learning_rate=1.0, seed=0)
    model.model.eval()
    totals = Totals()
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            for batch, said in _losses(model, part, plan, objective, plan.micro_batch_tokens):
                _add(totals, batch, said)
    return totals.read()


def _losses(
    model: LanguageModel, rows: Sequence[Row], plan: TrainingPlan, objective: Objective, streams: int, number: int = 0
) -> Iterator[tuple[Batch, LossSum]]:
    batches = micro_batches(rows, streams, model.device, share_prefixes=plan.share_prefixes)
    if isinstance(model, ShardedModel):
        batches, objective = model.in_step(batches), model.objective(objective)
    with model.packed():
        for batch in batches:
            noise = noisy_embeddings(model, batch, plan.neftune_alpha, seed=plan.seed, step=number)
            with noise, precision(model.device, plan):
                said = objective(model, batch)
            yield batch, said


def _add(totals: Totals, batch: Batch, said: LossSum) -> None:
    totals.loss = totals.loss + _number(said.loss)
    totals.weight += said.weight
    totals.tokens += batch.documents_tokens
    totals.computed += batch.tokens
    for name, value in said.metrics.items():
        totals.metrics[name] = totals.metrics.get(name, 0.0) + _number(value)


def _number(value: Tensor | float) -> Tensor | float:
    """A number, or on a GPU a tensor of as many digits that is not waited for."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return value.detach().double()
    return float(value.detach() if isinstance(value, Tensor) else value)


def _summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
