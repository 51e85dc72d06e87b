"""The training loop.

Around optimiser steps (`step.py`): validation loss and task metrics, the best weights, early stopping, checkpoints,
what the watchers hear. A run that is interrupted anywhere continues from its last checkpoint and ends with the same
bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import DataError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import trainable_parameters
from tunesmith.text.types import Group
from tunesmith.training import checkpoint, processes
from tunesmith.training.batching import RowOrder
from tunesmith.training.checkpoint import Progress
from tunesmith.training.graphs import make_graphs
from tunesmith.training.objectives import BuiltObjective, Objective, cross_entropy
from tunesmith.training.optimizers import make_optimizer
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.resources import HeapWatch, keep_freed_memory, peak_memory, reset_peak_memory
from tunesmith.training.sharding import ShardedModel
from tunesmith.training.step import DivergenceError, Row, Started, StepFacts, Stepper, loss_sums

Listener = Callable[[dict[str, Any]], None]
Score = Callable[[], Mapping[str, float]]
_LOG_SECONDS = 0.5
_SAVE_SECONDS, _SAVE_COST = 5.0, 50
"""Seconds between two checkpoints at the least, and so many times what saving one took: where they are small, a power
cut costs little. `TrainingPlan.checkpoint_seconds` is the most."""


class StopRequested(Exception):  # noqa: N818 - nothing is wrong
    """Raised by a listener at an event: the step is finished and a checkpoint saved, then it leaves `train`."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a finished training tells. `seconds`: optimiser steps only, without evaluation and checkpoints."""

    steps: int
    tokens: int
    supervised_tokens: int
    seconds: float
    peak_memory_bytes: int
    best_step: int | None
    best_value: float | None
    stopped_early: bool
    history: tuple[Mapping[str, Any], ...]


def train(
    model: LanguageModel,
    rows: Sequence[Row],
    plan: TrainingPlan,
    folder: Path,
    *,
    validation: Sequence[Row] = (),
    score: Score | None = None,
    objective: Objective = cross_entropy,
    listener: Listener = lambda event: None,
    identity: str = "",
    memory_limit: int | None = None,
) -> TrainingResult:
    """Train the model's trainable parameters in place; the best ones by `plan.select_by` remain in it.

    Parameters
    ----------
    rows: what is learnt; `folder`: where checkpoints live (an existing one is continued).
    validation: rows whose loss is measured; score: generates answers and returns task metrics.
    listener: receives `train_started`, `train_step` and `validation` events; may ask for a stop (`StopRequested`).
    identity: hash of the base; a checkpoint of another one is refused.
    memory_limit: bytes above which freed memory goes back to the system between two steps (on a CPU).

    Raises `DataError` where nothing is supervised, `DivergenceError` on a non-finite loss or gradient.
    """
    if not any(row.supervised or isinstance(row, Group) for row in rows):
        raise DataError("no row has anything to learn", fix="check the columns and the loss setting")
    keep_freed_memory()
    model.verify()
    heap = HeapWatch(memory_limit) if memory_limit is not None else None
    return _Training(model, rows, plan, folder, validation, score, objective, listener, identity, heap).run()


class _Training:
    """One training run: its parts, and where it stands."""

    def __init__(
        self,
        model: LanguageModel,
        rows: Sequence[Row],
        plan: TrainingPlan,
        folder: Path,
        validation: Sequence[Row],
        score: Score | None,
        objective: Objective,
        listener: Listener,
        identity: str,
        heap: HeapWatch | None,
    ) -> None:
        self.model, self.rows, self.plan, self.folder = model, rows, plan, folder
        self.validation, self.score, self.objective, self.listener = validation, score, objective, listener
        self.heap = heap
        self.parameters = trainable_parameters(model.model)
        kept: dict[str, torch.Tensor] = {**self.parameters}
        if isinstance(objective, BuiltObjective):
            self.parameters |= objective.parameters()
        flat = False if plan.optimizer_in_backward else True if plan.cuda_graphs else None
        self.optimizer = make_optimizer(self.parameters, plan, flat=flat)
        if isinstance(
            objective, BuiltObjective
        ):  # after the optimiser, which moves what is trained to memory of its own
            kept |= objective.state()
        self.order = RowOrder(len(rows), plan.batch_size, plan.seed, plan.shuffle)
        torch.manual_seed(plan.seed)
        folder.mkdir(parents=True, exist_ok=True)
        self.state = checkpoint.State(kept, self.optimizer, identity, sharded=isinstance(model, ShardedModel))
        self.progress = checkpoint.load_latest(folder, self.state) or Progress()
        graphs = make_graphs(model, plan, objective, rows, listener)
        self.stepper = Stepper(model, self.optimizer, plan, objective, self._tell, graphs)
        self.stepper.streams = min(self.stepper.streams, self.progress.streams or self.stepper.streams)
        if self.stepper.scaler is not None and self.progress.scaler is not None:
            self.stepper.scaler.load_state_dict(self.progress.scaler)
        self.saved_at = self.told_at = time.monotonic()
        self.started: list[Started] = []
        self.untold: list[StepFacts] = []
        self.stop: StopRequested | None = None
        # Processes that train together save together, and each has a clock of its own.
        alone = processes.count() == 1
        self.save_soonest = min(_SAVE_SECONDS, plan.checkpoint_seconds) if alone else plan.checkpoint_seconds
        self.save_after = self.save_soonest

    def run(self) -> TrainingResult:
        plan, progress = self.plan, self.progress
        self.listener(
            {
                "kind": "train_started",
                "steps": plan.steps,
                "rows": len(self.rows),
                "resumed_at": progress.step,
                "evaluate_every": plan.evaluate_every,
                "parameters": sum(p.numel() for p in self.model.model.parameters()),
                "trainable": sum(p.numel() for p in self.parameters.values()),
            }
        )
        reset_peak_memory()
        while progress.step < plan.steps and not progress.stopped_early:
            self._one_step()
            if self.stop is not None:
                raise self.stop
        if plan.select_by != "last" and progress.best_step is not None:
            checkpoint.load_best(self.folder, self.state)
        self.model.model.eval()
        return TrainingResult(
            steps=progress.step,
            tokens=progress.tokens,
            supervised_tokens=progress.supervised,
            seconds=progress.seconds,
            peak_memory_bytes=max(progress.peak_memory, peak_memory()),
            best_step=progress.best_step,
            best_value=progress.best_value,
            stopped_early=progress.stopped_early,
            history=tuple(progress.history),
        )

    def _one_step(self) -> None:
        """A step, and what is due after it."""
        plan, progress = self.plan, self.progress
        began = time.monotonic()
        number = progress.step + len(self.started)
        self.started.append(self.stepper.start([self.rows[i] for i in self.order.of_step(number)], number))
        if self.heap is not None:
            self.heap.after_step()
        last = number + 1 == plan.steps
        evaluating = bool(plan.evaluate_every) and (last or (number + 1) % plan.evaluate_every == 0)
        watching = bool(plan.watch_every and self.validation) and (number + 1) % plan.watch_every == 0
        logging = bool(plan.log_every) and (number + 1) % plan.log_every == 0
        due_to_tell = time.monotonic() - self.told_at >= _LOG_SECONDS
        telling = evaluating or watching or logging or last or number == 0 or due_to_tell
        due = time.monotonic() - self.saved_at > self.save_after
        epoch_ends = bool(plan.keep_epochs) and (number + 1) % self.order.steps_per_epoch == 0
        if telling or due or epoch_ends or len(self.started) >= self.stepper.read_every:
            self._read()
        progress.seconds += time.monotonic() - began
        if telling:
            self._log(self.untold[-1], self._watched() if watching and not evaluating else {})
        if evaluating:
            self._evaluate()
        if epoch_ends:
            checkpoint.save_epoch(self.folder, progress.step, self.state, plan.keep_epochs)
        if self.stop is not None:
            self._read()
        if last or progress.stopped_early or evaluating or due or self.stop is not None:
            self._save()

    def _read(self) -> None:
        """Wait for the steps that were started, and count them."""
        progress, started = self.progress, self.started
        self.started = []
        for step in started:
            try:
                facts = self.stepper.read(step)
            except DivergenceError:
                self._save()  # no weight was changed by it: what was learnt before is kept
                raise
            self.untold.append(facts)
            progress.step += 1
            progress.tokens += facts.tokens
            progress.computed += facts.computed_tokens
            progress.supervised += sum(row.supervised for row in step.rows)

    def _watched(self) -> dict[str, float]:
        """Loss and metrics of some validation rows, which take turns."""
        count, rows = min(self.plan.watch_rows, len(self.validation)), self.validation
        first = (self.progress.step // self.plan.watch_every - 1) * count
        some = [rows[(first + i) % len(rows)] for i in range(count)]
        sums = loss_sums(self.model, some, self.objective, self.plan)
        return {f"watched_{name}": value for name, value in {"loss": sums.mean, **sums.means()}.items() if sums.weight}

    def _log(self, facts: StepFacts, watched: Mapping[str, float]) -> None:
        progress = self.progress
        self.told_at = time.monotonic()
        self._tell(
            {
                "kind": "train_step",
                "step": progress.step,
                "steps": self.plan.steps,
                "epoch": progress.step / self.order.steps_per_epoch,
                "loss": facts.loss,
                "learning_rate": facts.learning_rate,
                "grad_norm": facts.grad_norm,
                "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
                "seconds": progress.seconds,
                "memory_bytes": peak_memory(),
                "mean_loss": sum(f.loss for f in self.untold) / len(self.untold),
                "max_grad_norm": max(f.grad_norm for f in self.untold),
                **facts.metrics,
                **watched,
            }
        )
        self.untold.clear()

    def _tell(self, event: dict[str, Any]) -> None:
        try:
            self.listener(event)
        except StopRequested as request:
            self.stop = request
        self.progress.history.append(event)

    def _save(self) -> None:
        began = time.monotonic()
        self.progress.peak_memory = max(self.progress.peak_memory, peak_memory())
        self.progress.streams = self.stepper.streams
        if self.stepper.scaler is not None:
            self.progress.scaler = self.stepper.scaler.state_dict()
        checkpoint.save_checkpoint(self.folder, self.progress, self.state, self.plan.keep_checkpoints)
        processes.wait()
        self.saved_at = time.monotonic()
        took = self.saved_at - began
        self.save_after = max(self.save_soonest, min(self.plan.checkpoint_seconds, _SAVE_COST * took))

    def _evaluate(self) -> None:
        """Measure, remember the best, and say whether to stop."""
        plan, progress = self.plan, self.progress
        self.model.model.eval()
        sums = loss_sums(self.model, self.validation, self.objective, plan) if self.validation else None
        loss = sums.mean if sums is not None and sums.weight else math.nan
        metrics = dict(self.score()) if self.score is not None else {}
        by_metric = plan.select_by == "metric" and plan.metric in metrics
        value = metrics[plan.metric] if by_metric and plan.metric else -loss
        better = False
        if plan.select_by != "last" and not math.isnan(value):
            best, best_loss = progress.best_value, progress.best_loss
            tie = best is not None and value == best and best_loss is not None and loss < best_loss
            better = best is None or value > best or tie
        if better:
            progress.best_step, progress.best_value, progress.best_loss = progress.step, value, loss
            progress.stale = 0
            checkpoint.save_best(self.folder, self.state)
            processes.wait()
        elif not math.isnan(value):  # nothing measured is nothing to lose patience with
            progress.stale += 1
        progress.stopped_early = plan.select_by != "last" and bool(plan.patience) and progress.stale >= plan.patience
        known_loss = None if math.isnan(loss) else loss
        self._tell(
            {
                "kind": "validation",
                "step": progress.step,
                "loss": known_loss,
                "metrics": metrics,
                "best": better,
                **(sums.means() if sums is not None else {}),
            }
        )
