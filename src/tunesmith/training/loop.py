"""The training loop.

One optimiser step: take the step's rows, pack them into streams, sum loss gradients over the streams, divide by the
step's total weight (so grouping does not matter), clip, AdamW, next learning rate. Around it: validation loss and
task metrics, the best weights, early stopping, checkpoints. A run that is interrupted anywhere continues from its last
checkpoint and ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import DataError, TunesmithError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import trainable_parameters
from tunesmith.text.types import Sample
from tunesmith.training import checkpoint, processes
from tunesmith.training.batching import RowOrder, micro_batches
from tunesmith.training.checkpoint import Progress
from tunesmith.training.objectives import Objective, cross_entropy
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.resources import keep_freed_memory, peak_memory, reset_peak_memory

Listener = Callable[[dict[str, Any]], None]
Score = Callable[[], Mapping[str, float]]
_LOG_SECONDS = 0.5


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


class DivergenceError(TunesmithError):
    """Loss or gradient became infinite or not a number."""

    exit_code = 5


def train(
    model: LanguageModel,
    samples: Sequence[Sample],
    plan: TrainingPlan,
    folder: Path,
    *,
    validation: Sequence[Sample] = (),
    score: Score | None = None,
    objective: Objective = cross_entropy,
    listener: Listener = lambda event: None,
) -> TrainingResult:
    """Train the model's trainable parameters in place; the best ones by `plan.select_by` remain in it.

    Parameters
    ----------
    samples: rows to learn; `folder`: where checkpoints live (an existing one is continued).
    validation: rows whose loss is measured; score: generates answers and returns task metrics.
    listener: receives `train_started`, `train_step` and `validation` events.

    Raises `DataError` where nothing is supervised, `DivergenceError` on a non-finite loss or gradient.
    """
    if not any(s.supervised for s in samples):
        raise DataError("no row has anything to learn", fix="check the columns and the loss setting")
    keep_freed_memory()
    model.verify()
    parameters = trainable_parameters(model.model)
    optimizer = make_optimizer(parameters, plan)
    order = RowOrder(len(samples), plan.batch_size, plan.seed, plan.shuffle)
    torch.manual_seed(plan.seed)
    folder.mkdir(parents=True, exist_ok=True)
    progress = checkpoint.load_latest(folder, parameters, optimizer) or Progress()
    listener(
        {
            "kind": "train_started",
            "steps": plan.steps,
            "rows": len(samples),
            "resumed_at": progress.step,
            "parameters": sum(p.numel() for p in model.model.parameters()),
            "trainable": sum(p.numel() for p in parameters.values()),
        }
    )
    for event in progress.history:
        listener(event)
    reset_peak_memory()
    saved_at = told_at = time.monotonic()
    while progress.step < plan.steps and not progress.stopped_early:
        began = time.monotonic()
        rows = [samples[i] for i in order.of_step(progress.step)]
        loss, grad_norm, learning_rate = _step(model, rows, plan, progress, parameters, optimizer, objective)
        now = time.monotonic()
        progress.seconds += now - began
        last = progress.step == plan.steps
        evaluating = bool(plan.evaluate_every) and (last or progress.step % plan.evaluate_every == 0)
        if evaluating or last or progress.step == 1 or now - told_at >= _LOG_SECONDS:
            told_at = now
            event = {
                "kind": "train_step",
                "step": progress.step,
                "steps": plan.steps,
                "epoch": progress.step / order.steps_per_epoch,
                "loss": loss,
                "learning_rate": learning_rate,
                "grad_norm": grad_norm,
                "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
                "seconds": progress.seconds,
                "memory_bytes": peak_memory(),
            }
            listener(event)
            progress.history.append(event)
        if evaluating:
            _evaluate(model, plan, progress, validation, score, folder, parameters, listener)
        if last or progress.stopped_early or evaluating or time.monotonic() - saved_at > plan.checkpoint_seconds:
            progress.peak_memory = max(progress.peak_memory, peak_memory())
            if processes.first():
                checkpoint.save_checkpoint(folder, progress, parameters, optimizer, plan.keep_checkpoints)
            processes.wait()
            saved_at = time.monotonic()
    if plan.select_by != "last" and progress.best_step is not None:
        checkpoint.load_best(folder, parameters)
    model.model.eval()
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


def make_optimizer(parameters: Mapping[str, torch.nn.Parameter], plan: TrainingPlan) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), fused; weight decay on matrices only."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=plan.learning_rate, betas=plan.betas, eps=plan.epsilon, fused=True
    )


def validation_loss(
    model: LanguageModel, samples: Sequence[Sample], token_budget: int, objective: Objective = cross_entropy
) -> float:
    """Mean loss per supervised token, without gradients."""
    total = weight = 0.0
    model.model.eval()
    with torch.no_grad(), model.packed():
        for start in range(0, len(samples), 64):
            for batch in micro_batches(samples[start : start + 64], token_budget, model.device):
                total += float(objective(model, batch))
                weight += float(batch.weights.sum())
    return total / weight if weight else math.nan


def accumulate_gradients(
    model: LanguageModel,
    rows: Sequence[Sample],
    plan: TrainingPlan,
    objective: Objective = cross_entropy,
    weight: float | None = None,
) -> tuple[float, int]:
    """Add the gradients of the rows' loss sum over `weight` to `.grad`; returns that quotient and the tokens computed.

    `weight` is by default the rows' own; it is more where other processes work on the rest of the step.
    """
    weight = step_weight(rows) if weight is None else weight
    if not weight:
        return 0.0, 0
    total, tokens = 0.0, 0
    with model.packed():
        for batch in micro_batches(rows, plan.micro_batch_tokens, model.device):
            with _autocast(model, plan):
                loss = objective(model, batch) / weight
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            tokens += batch.tokens
    return total, tokens


def step_weight(rows: Sequence[Sample]) -> float:
    """Sum of the loss weights of a step's rows."""
    return float(sum(s.weights.sum(dtype="float64") for s in rows))


def _step(
    model: LanguageModel,
    rows: Sequence[Sample],
    plan: TrainingPlan,
    progress: Progress,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    objective: Objective,
) -> tuple[float, float, float]:
    """One optimiser step; returns loss, gradient norm before clipping, and learning rate."""
    model.model.train()
    loss, tokens = accumulate_gradients(model, processes.share(rows), plan, objective, step_weight(rows))
    loss, tokens = processes.sum_gradients(list(parameters.values()), loss, tokens)
    limit = plan.max_grad_norm or math.inf
    grad_norm = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), limit)) if tokens else 0.0
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        ids = ", ".join(s.example_id for s in rows[:8])
        raise DivergenceError(
            f"the loss is {loss}, the gradient norm {grad_norm}",
            where=f"step {progress.step + 1}, rows {ids}",
            fix="lower train.learning_rate; the last checkpoint before this step is intact",
        )
    learning_rate = plan.learning_rate_at(progress.step)
    if tokens:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    progress.step += 1
    progress.tokens += tokens
    progress.supervised += sum(s.supervised for s in rows)
    return loss, grad_norm, learning_rate


def _evaluate(
    model: LanguageModel,
    plan: TrainingPlan,
    progress: Progress,
    validation: Sequence[Sample],
    score: Score | None,
    folder: Path,
    parameters: dict[str, torch.nn.Parameter],
    listener: Listener,
) -> None:
    """Measure, remember the best, and say whether to stop."""
    model.model.eval()
    loss = validation_loss(model, validation, plan.micro_batch_tokens) if validation else math.nan
    metrics = dict(score()) if score is not None else {}
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
        if processes.first():
            checkpoint.save_best(folder, parameters)
        processes.wait()
    elif not math.isnan(value):  # nothing measured is nothing to lose patience with
        progress.stale += 1
    progress.stopped_early = plan.select_by != "last" and bool(plan.patience) and progress.stale >= plan.patience
    known_loss = None if math.isnan(loss) else loss
    event = {"kind": "validation", "step": progress.step, "loss": known_loss, "metrics": metrics, "best": better}
    listener(event)
    progress.history.append(event)


@contextlib.contextmanager
def _autocast(model: LanguageModel, plan: TrainingPlan) -> Iterator[None]:
    if plan.autocast is None:
        yield
        return
    with torch.autocast(model.device.type, dtype=getattr(torch, plan.autocast)):
        yield
