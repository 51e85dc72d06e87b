"""How much memory a training takes at its peak, before it begins.

    peak = process + weights + optimiser state + gradients + (kept activations + temporary tensors) + heap + saving

`process` (interpreter, libraries, data, what is not the model's) is measured, once the model is loaded; all else comes
from shapes: of the optimiser that is made for these parameters, and of the heaviest micro-batch there will be, run
without numbers (`memory_trace`). Answering validation rows takes weights and state too, and a cache of keys and values
in place of activations; it counts where it takes more. Saving copies what is trained.

Two things shapes cannot tell, and constants fitted to a dozen runs stand for them. `RUNTIME`: what libraries take when
they first compute: pages of their code, compiled products, buffers of threads. `heap_bytes`: on a CPU the heap reaches
further than what is in use, since blocks of ever other sizes leave holes. Where every step is alike it is a fifth more;
over some twenty ragged steps it grows to 1.3 to 2.5 times, the less the more is in use. Giving it back costs more than
it saves: a tenth to a fifth of the time (`resources.HeapWatch` does so where the limit is reached).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.errors import TunesmithError
from tunesmith.models.forward import LanguageModel
from tunesmith.text.types import Group, Sample
from tunesmith.training.batching import Batch, RowOrder, micro_batches
from tunesmith.training.memory_trace import Answering, PassMemory, Shapes, measured_step, own_parameters
from tunesmith.training.objectives import Objective
from tunesmith.training.plan import TrainingPlan

Row = Sample | Group
RUNTIME = {"cpu": 40 << 20, "cuda": 48 << 20}
_LOOKED_AT = 12
"""Steps whose micro-batches are formed to find the heaviest: those with most tokens, a quarter with the longest row."""


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """Predicted bytes at the peak. `parts` sum to `peak_bytes`; `stream_tokens` of the heaviest micro-batch."""

    peak_bytes: int
    parts: Mapping[str, int]
    stream_tokens: int


class MemoryModel:
    """Predicts the peak of one training for any micro-batch and recomputation.

    Parameters
    ----------
    model: as it will be trained, adapters attached; or `Shapes` that were changed so.
    rows: those that are learnt. plan: of the training; its micro-batch and recomputation do not matter here.
    held_bytes: what the process holds with the model loaded (`resources.settle`).
    answers: what evaluations answer at once, if they do.
    """

    def __init__(
        self,
        model: LanguageModel | Shapes,
        rows: Sequence[Row],
        plan: TrainingPlan,
        objective: Objective,
        held_bytes: int,
        answers: Answering | None = None,
    ) -> None:
        self.real = None if isinstance(model, Shapes) else model
        self.shapes = model if isinstance(model, Shapes) else Shapes(model.model)
        self.model = LanguageModel(self.shapes.model)
        self.rows, self.plan, self.objective = rows, plan, objective
        kind = self.model.device.type
        weights = weight_bytes(self.model.model)
        state, gradients = self.shapes.optimizer_bytes(plan, own_parameters(objective))
        self.static = {
            "process": max(0, held_bytes - weights) + RUNTIME[kind],
            "weights": weights,
            "optimizer": state,
            "gradients": gradients,
            "saving": trained_bytes(self.model.model) if kind == "cpu" else 0,
        }
        self.answers = answers
        self.answering = self.shapes.answering(answers) if answers is not None else 0
        self._order = RowOrder(len(rows), plan.batch_size, plan.seed, plan.shuffle)
        self._known: dict[tuple[Any, ...], PassMemory] = {}

    def forecast(self, micro_batch_tokens: int, recompute: Collection[int] = ()) -> MemoryForecast:
        """The peak with micro-batches of at most so many tokens, and these layers computed again."""
        heaviest: tuple[PassMemory, int] | None = None
        for batch, others in self.heaviest(micro_batch_tokens):
            taken = self.measure(batch, recompute, gradients_there=others)
            if heaviest is None or taken.peak > heaviest[0].peak:
                heaviest = taken, batch.tokens
        if heaviest is None:
            return self._summed(PassMemory(0, 0), 0)
        return self._summed(*heaviest)

    def measure(self, batch: Batch, recompute: Collection[int] = (), *, gradients_there: bool = False) -> PassMemory:
        """What one micro-batch allocates: from shapes, or where they are not enough from the real model."""
        key = (tuple(row.ids.tobytes() for row in batch.rows), tuple(sorted(recompute)), gradients_there)
        if key not in self._known:
            self._known[key] = self._measure(batch, recompute, gradients_there)
        return self._known[key]

    def heaviest(self, micro_batch_tokens: int) -> list[tuple[Batch, bool]]:
        """The micro-batch with the most tokens, and the one with the longest document where that is another.

        With each: whether its step has more than one, so that gradients are there already.
        """
        found: list[tuple[Batch, bool]] = []
        for rows in self._heavy_steps():
            batches = list(
                micro_batches(rows, micro_batch_tokens, self.model.device, share_prefixes=self.plan.share_prefixes)
            )
            found += [(batch, len(batches) > 1) for batch in batches]
        if not found:
            return []
        most = max(found, key=lambda entry: (entry[0].tokens, entry[1]))
        longest = max(found, key=lambda entry: (_longest(entry[0]), entry[0].tokens))
        # Only attention by plain products grows faster than the tokens do.
        return [most, longest] if _longest(longest[0]) > 1.5 * _longest(most[0]) else [most]

    def _measure(self, batch: Batch, recompute: Collection[int], gradients_there: bool) -> PassMemory:
        try:
            return self.shapes.step(
                batch, self.objective, self.plan, recompute=recompute, gradients_there=gradients_there
            )
        except (RuntimeError, TunesmithError):
            if self.real is None:
                raise
            # If it is not for want of numbers, running it raises the same.
            return measured_step(self.real, batch, self.objective, self.plan, recompute)

    def _summed(self, taken: PassMemory, tokens: int) -> MemoryForecast:
        step, answers = taken.peak, self.answering
        if answers > step:
            taken = PassMemory(0, 0)
        parts = {
            **self.static,
            "activations": taken.saved,
            "temporary": taken.peak - taken.saved,
            "answers": answers if answers > step else 0,
            "heap": heap_bytes(max(step, answers), self.model.device.type),
        }
        return MemoryForecast(sum(parts.values()), parts, tokens)

    def answering_fewer(self, prompts: int) -> MemoryModel:
        """The same training where evaluations answer at most so many prompts at once; none with 0."""
        other = copy.copy(self)
        other.answers = replace(self.answers, prompts=prompts) if self.answers is not None and prompts else None
        other.answering = self.shapes.answering(other.answers) if other.answers is not None else 0
        return other

    def total(self, in_use: int) -> int:
        """The peak where a micro-batch has so many bytes in use."""
        most = max(in_use, self.answering)
        return sum(self.static.values()) + most + heap_bytes(most, self.model.device.type)

    def _heavy_steps(self) -> list[list[Row]]:
        """Rows of the steps, of an epoch at least, that may hold the heaviest micro-batch."""
        lengths = np.array([row_tokens(row) for row in self.rows])
        count, size = len(lengths), self.plan.batch_size
        # As one batch of all rows, an epoch's order is drawn once.
        whole = RowOrder(count, count, self._order.seed, self._order.shuffle)
        per_epoch = self._order.steps_per_epoch
        steps = max(self.plan.steps, per_epoch)
        tokens, longest = [], []
        for epoch in range(-(-steps // per_epoch)):
            ordered = lengths[np.asarray(whole.of_step(epoch))]
            padded = np.pad(ordered, (0, per_epoch * size - count)).reshape(per_epoch, size)
            tokens.append(padded.sum(1))
            longest.append(padded.max(1))
            if not self._order.shuffle:
                break
        sums, tops = (np.concatenate(part)[:steps] for part in (tokens, longest))
        chosen = [*np.argsort(-sums, kind="stable")[:_LOOKED_AT], *np.argsort(-tops, kind="stable")[: _LOOKED_AT // 4]]
        return [[self.rows[i] for i in self._order.of_step(int(step))] for step in dict.fromkeys(chosen)]


def heap_bytes(in_use: int, device: str) -> int:
    """Bytes of the heap beyond those in use, where so many of them come and go."""
    if device == "cuda":
        return round(0.04 * in_use)  # blocks are rounded up
    return round(13 * math.sqrt(in_use * 2**20) + 0.04 * in_use)


def weight_bytes(model: Any) -> int:
    """Bytes of a model's parameters and buffers, shared ones once."""
    return sum({id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())


def trained_bytes(model: Any) -> int:
    """Bytes of the parameters that are trained."""
    return sum(p.nbytes for p in model.parameters() if p.requires_grad)


def row_tokens(row: Row) -> int:
    """Tokens of a row, of all its documents."""
    return sum(len(sample.ids) for sample in (row.samples if isinstance(row, Group) else (row,)))


def _longest(batch: Batch) -> int:
    return max(len(row.ids) for row in batch.rows)
