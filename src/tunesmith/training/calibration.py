"""How fast this machine is, measured once and kept: matrix products by type, and a few micro-batches of a training.

Measured by `check`, never while a training starts. Kept in `calibration.json` in the user's cache folder
(`$TUNESMITH_CACHE`, else `$XDG_CACHE_HOME/tunesmith`, else `~/.cache/tunesmith`), by machine, threads, library versions
and what is trained. A time that is predicted from it is that of the measured moment's machine: other work on it counts.

A micro-batch takes `per_micro_batch + per_token · tokens` seconds, an optimiser step `per_step` on top.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import trainable_parameters
from tunesmith.ops.fp8 import ACTIVATION, encode, product8
from tunesmith.ops.product import product
from tunesmith.runs.atomic import write_json
from tunesmith.text.types import Group, Sample
from tunesmith.training.batching import RowOrder, streams
from tunesmith.training.objectives import Objective, cross_entropy
from tunesmith.training.optimizers import grad_norm_and_clip, make_optimizer
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.step import accumulate_gradients, mean_loss

Row = Sample | Group
_FILE = "calibration.json"
_ROUNDS = 3
_ENOUGH_SECONDS = 20.0
"""After so long no further round is measured."""
_STEPS_LOOKED_AT = 24
"""Steps whose rows are put into streams to know how many tokens and micro-batches a step has."""
_PRODUCT_SIZES = {"cpu": 1536, "cuda": 8192}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Seconds, as measured. `forward_per_token`: without gradients. `per_answer`: of a generated row, if asked for."""

    per_micro_batch: float
    per_token: float
    per_step: float
    forward_per_token: float
    per_answer: float | None
    measured_at: str


@dataclass(frozen=True, slots=True)
class TimeForecast:
    """A training's wall time in seconds, by what takes it. `tokens`: those computed in all steps.

    It does not know of early stopping, and takes answers to be as long as before the training.
    """

    steps: int
    tokens: int
    training_seconds: float
    validation_seconds: float
    answering_seconds: float

    @property
    def seconds(self) -> float:
        """All together."""
        return self.training_seconds + self.validation_seconds + self.answering_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of the optimiser steps."""
        return self.tokens / self.training_seconds if self.training_seconds else 0.0


def calibrate(
    model: LanguageModel,
    rows: Sequence[Row],
    plan: TrainingPlan,
    objective: Objective = cross_entropy,
    *,
    answer: Callable[[], int] | None = None,
    fresh: bool = False,
) -> Calibration:
    """Measure a few micro-batches of this training, or read what was measured before.

    The weights keep their values; gradients are dropped. Parameters may move into an optimiser's buffers.

    Parameters
    ----------
    model: as it is trained. rows: those it learns, in the plan's steps.
    answer: answers a batch of validation rows and returns how many.
    fresh: measure even if it is known.
    """
    key = training_key(model, rows, plan, objective)
    known = _read().get(key)
    if known is not None and not fresh and (answer is None or known["per_answer"] is not None):
        return Calibration(**known)
    measured = _measure(model, rows, plan, objective)
    if answer is not None:
        began = time.perf_counter()
        count = answer()
        measured = replace(measured, per_answer=(time.perf_counter() - began) / max(1, count))
    _keep(key, asdict(measured))
    return measured


def known_calibration(
    model: LanguageModel, rows: Sequence[Row], plan: TrainingPlan, objective: Objective = cross_entropy
) -> Calibration | None:
    """What was measured for such a training before, or None. Measures nothing."""
    known = _read().get(training_key(model, rows, plan, objective))
    return None if known is None else Calibration(**known)


def forecast_time(
    calibration: Calibration,
    rows: Sequence[Row],
    plan: TrainingPlan,
    *,
    validation_tokens: int = 0,
    answered_rows: int = 0,
) -> TimeForecast:
    """Wall time of a training: optimiser steps, validation losses and answers to `answered_rows` at each evaluation."""
    shares = list(_streams_of_steps(rows, plan))
    tokens = statistics.fmean(sum(sizes) for sizes in shares)
    micro_batches = statistics.fmean(len(sizes) for sizes in shares)
    step = micro_batches * calibration.per_micro_batch + tokens * calibration.per_token + calibration.per_step
    evaluations = 0
    if plan.evaluate_every:
        evaluations = plan.steps // plan.evaluate_every + (plan.steps % plan.evaluate_every > 0)
    return TimeForecast(
        steps=plan.steps,
        tokens=round(plan.steps * tokens),
        training_seconds=plan.steps * step,
        validation_seconds=evaluations * validation_tokens * calibration.forward_per_token,
        answering_seconds=evaluations * answered_rows * (calibration.per_answer or 0.0),
    )


def measured_gemm_rate(precision: str, device: torch.device | str = "cpu", *, fresh: bool = False) -> float:
    """Operations per second of large matrix products in fp32, bf16, fp16 or fp8: the ceiling that MFU is a share of."""
    kind = torch.device(device).type
    key = f"products {_machine(kind)} {precision}"
    known = _read().get(key)
    if known is not None and not fresh:
        return float(known)
    rate = _time_products(precision, torch.device(device), _PRODUCT_SIZES[kind])
    _keep(key, rate)
    return rate


def known_gemm_rate(precision: str, device: torch.device | str = "cpu") -> float | None:
    """The rate if it was measured before, or None. Measures nothing."""
    known = _read().get(f"products {_machine(torch.device(device).type)} {precision}")
    return None if known is None else float(known)


def measured_rates(device: torch.device | str = "cpu") -> dict[str, float]:
    """Rates by precision of the types that the device has; what `choose_precision` takes."""
    names = ["fp32"]
    if torch.device(device).type == "cpu":
        names.append("bf16")
    else:
        names.append("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    return {name: measured_gemm_rate(name, device) for name in names}


def cache_folder() -> Path:
    """Where measurements are kept."""
    if own := os.environ.get("TUNESMITH_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"


def training_key(model: LanguageModel, rows: Sequence[Row], plan: TrainingPlan, objective: Objective) -> str:
    """What a training's speed depends on, in one line: machine, versions, parameters, micro-batches, kind of rows."""
    shapes = [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in model.model.named_parameters()]
    digest = hashlib.sha256(repr((type(model.model).__name__, shapes)).encode()).hexdigest()[:16]
    lengths = [sum(len(s.ids) for s in (r.samples if isinstance(r, Group) else (r,))) for r in rows]
    mean = statistics.fmean(lengths)
    learnt = sum(row.supervised for row in rows) / max(1, sum(lengths))
    return " ".join(
        [
            _machine(model.device.type),
            digest,
            getattr(objective, "__name__", type(objective).__name__),
            f"{plan.precision} {plan.optimizer} {plan.micro_batch_tokens} {len(plan.recompute_layers)}",
            # Rows a fifth longer, or learnt a tenth more, take another time per token.
            f"{plan.batch_size} {round(4 * math.log2(mean))} {round(10 * learnt)} {plan.share_prefixes}",
        ]
    )


def _measure(model: LanguageModel, rows: Sequence[Row], plan: TrainingPlan, objective: Objective) -> Calibration:
    """Whole steps and small parts of steps in turn, each of other rows, as in training no two steps are alike."""
    parameters = trainable_parameters(model.model)
    optimizer = make_optimizer(parameters, replace(plan, learning_rate=0.0, weight_decay=0.0))
    order = RowOrder(len(rows), plan.batch_size, plan.seed, plan.shuffle)
    points: list[tuple[float, float, float]] = []
    updates, forwards = [], []
    began = time.monotonic()
    # The first round warms up what compiles or allocates on first use.
    for turn in range(_ROUNDS + 1):
        whole = _first_stream([rows[i] for i in order.of_step(2 * turn % max(1, plan.steps))], plan)
        other = _first_stream([rows[i] for i in order.of_step((2 * turn + 1) % max(1, plan.steps))], plan)
        part = other[::4]
        for chosen in (part, whole):
            optimizer.zero_grad()
            _wait(model)
            start = time.perf_counter()
            totals = accumulate_gradients(model, chosen, plan, objective)
            _wait(model)
            points.append((turn, totals.computed, time.perf_counter() - start))
        start = time.perf_counter()
        grad_norm_and_clip(optimizer, 1.0, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _wait(model)
        updates.append(time.perf_counter() - start)
        start = time.perf_counter()
        mean_loss(model, whole, objective, plan)
        _wait(model)
        forwards.append((time.perf_counter() - start) / max(1, points[-1][1]))
        if turn and time.monotonic() - began > _ENOUGH_SECONDS:
            break
    model.model.train()
    fixed, slope = _line([(tokens, seconds) for turn, tokens, seconds in points if turn and tokens])
    return Calibration(
        per_micro_batch=fixed,
        per_token=slope,
        per_step=statistics.median(updates[1:]),
        forward_per_token=statistics.median(forwards[1:]),
        per_answer=None,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _first_stream(rows: Sequence[Row], plan: TrainingPlan) -> list[Row]:
    """The rows of a step's first micro-batch."""
    return next(iter(_streams(rows, plan)), ([], 0))[0]


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(a, b) of `seconds = a + b · tokens`, neither negative, through the medians of the smaller and the larger half.

    Medians, as a machine that is shared has outliers.
    """
    ordered = sorted(points)
    half = max(1, len(ordered) // 2)
    (few, short), (many, long) = (
        (statistics.median(t for t, _ in part), statistics.median(s for _, s in part))
        for part in (ordered[:half], ordered[-half:])
    )
    if many > few and long > short:
        slope = (long - short) / (many - few)
        if short - slope * few >= 0:
            return short - slope * few, slope
        return 0.0, long / many
    return 0.0, statistics.median(seconds / tokens for tokens, seconds in points)


def _streams_of_steps(rows: Sequence[Row], plan: TrainingPlan) -> Iterator[list[int]]:
    """Sizes of the micro-batches of steps at equal distances."""
    order = RowOrder(len(rows), plan.batch_size, plan.seed, plan.shuffle)
    for step in range(0, plan.steps, -(-plan.steps // _STEPS_LOOKED_AT)):
        yield [size for _, size in _streams([rows[i] for i in order.of_step(step)], plan)]


def _streams(rows: Sequence[Row], plan: TrainingPlan) -> Iterator[tuple[list[Row], int]]:
    """The micro-batches of a step, and the tokens of each."""
    learnt = [row for row in rows if isinstance(row, Group) or row.supervised]
    return streams(learnt, plan.micro_batch_tokens, share_prefixes=plan.share_prefixes)


def _time_products(precision: str, device: torch.device, size: int) -> float:
    """The best of several products of two square matrices, in operations per second."""
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (torch.randn(size, size, generator=generator, device=device) for _ in "xw")
    if precision == "fp8":
        left, right = encode(x, ACTIVATION), encode(weight, ACTIVATION)
        multiply: Callable[[], Tensor] = partial(product8, left, right, torch.bfloat16)
    else:
        multiply = partial(product, x.to(_DTYPES[precision]), weight.to(_DTYPES[precision]))
    best = math.inf
    began = time.monotonic()
    while time.monotonic() - began < 0.5 or best == math.inf:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        multiply()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _wait(model: LanguageModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _machine(kind: str) -> str:
    """The processor that computes, its threads, and the libraries that do it."""
    if kind == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else platform.processor() or platform.machine()
        name += f" x{torch.get_num_threads()}"
    return (
        f"{name}, torch {torch.__version__}, transformers {version('transformers')}, tunesmith {version('tunesmith')}"
    )


def _read() -> dict[str, Any]:
    """All that is kept; nothing where the file is not there or damaged, as it can be measured again."""
    try:
        kept = json.loads((cache_folder() / _FILE).read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(key: str, value: float | Mapping[str, Any]) -> None:
    write_json(cache_folder() / _FILE, {**_read(), key: value})
