"""The events of a training as curves that can be asked questions.

What `from_history` reads, all but `step` and `loss` optional:

- `train_step`: `step`, `loss`, `learning_rate`, `grad_norm`; and over the steps since the event before: `mean_loss`,
  `max_grad_norm`.
- `validation`: `step` (0 is before training), `loss`, `metrics`, `best`; `probe` (see `probe.py`) and `answers` (see
  `answers.py`), measured at that moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from tunesmith.training.diagnosis.types import TrainingFacts


@dataclass(frozen=True, slots=True)
class Step:
    """One logged training step; `loss` is the mean since the step logged before, where that is known."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured at one moment; step 0 is the untrained model. Losses in nats per learnt token.

    `loss` and `accuracy` are of validation rows, `loss_error` its standard error.
    """

    step: int
    loss: float | None = None
    loss_error: float | None = None
    accuracy: float | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, float] = field(default_factory=dict)
    best: bool = False


@dataclass(frozen=True, slots=True)
class Curves:
    """All logged steps and readings in order; `before` is the reading at step 0."""

    steps: tuple[Step, ...]
    readings: tuple[Reading, ...]
    before: Reading | None = None
    finished: bool = True

    @classmethod
    def from_history(cls, history: Iterable[Mapping[str, Any]], finished: bool = True) -> Curves:
        """Read a run's events; kinds that are neither steps nor validations are passed over.

        `finished`: no further steps will follow, though fewer than planned may have been made.
        """
        steps: list[Step] = []
        readings: list[Reading] = []
        before = None
        for event in history:
            if event["kind"] == "train_step":
                steps.append(_step(event))
            elif event["kind"] == "validation":
                reading = _reading(event)
                if reading.step == 0:
                    before = reading
                else:
                    readings.append(reading)
        return cls(tuple(steps), tuple(readings), before, finished)

    @property
    def last(self) -> Reading | None:
        """The newest reading."""
        return self.readings[-1] if self.readings else None

    @property
    def kept(self) -> Reading | None:
        """The reading whose weights are kept: the best by what the recipe selects by, else the newest."""
        return next((r for r in reversed(self.readings) if r.best), self.last)

    @property
    def lowest(self) -> Reading | None:
        """The reading with the lowest validation loss."""
        known = [r for r in self.readings if r.loss is not None and math.isfinite(r.loss)]
        return min(known, key=lambda r: (r.loss, r.step)) if known else None

    def far(self, facts: TrainingFacts, share: float) -> bool:
        """Whether the run is over, or at least this share of the planned steps was made."""
        newest = max([s.step for s in self.steps[-1:]] + [r.step for r in self.readings[-1:]], default=0)
        return self.finished or newest >= share * facts.steps

    @property
    def start_loss(self) -> float | None:
        """Training loss before the first step."""
        if self.before is not None and self.before.train_loss is not None:
            return self.before.train_loss
        return self.steps[0].loss if self.steps and self.steps[0].step == 1 else None

    def train_levels(self) -> list[tuple[int, float]]:
        """(step, training loss) over the run.

        Of fixed rows where they were measured at each reading; else medians over eighths of the logged steps, as single
        steps see few rows and jump.
        """
        probed = [(r.step, r.train_loss) for r in self.readings if r.train_loss is not None]
        if probed:
            return probed
        size = max(1, math.ceil(len(self.steps) / 8))
        groups = [self.steps[i : i + size] for i in range(0, len(self.steps), size)]
        return [(group[-1].step, median(s.loss for s in group)) for group in groups]

    def level_at(self, step: float) -> float:
        """Training loss at a step, on straight lines between the levels; NaN where there are none."""
        levels = self.train_levels()
        if self.start_loss is not None:
            levels = [(0, self.start_loss), *levels]
        if not levels:
            return math.nan
        return float(np.interp(step, [s for s, _ in levels], [level for _, level in levels]))

    def spent_by(self, step: int, share: float) -> float:
        """The step by which this share of the learning rates up to `step` was spent; of the steps where unknown.

        A cosine schedule spends 2.5 % on the last quarter of its steps: that little moves there shows nothing.
        """
        logged = [s for s in self.steps if s.step <= step]
        if len(logged) < 4:
            return share * step
        places = np.array([0, *(s.step for s in logged)])
        spent = np.cumsum([0.0, *(np.diff(places) * [s.learning_rate for s in logged])])
        return float(np.interp(share * spent[-1], spent, places))

    def metric(self, reading: Reading | None, facts: TrainingFacts) -> float | None:
        """The deciding metric of a reading, 0-1."""
        return reading.metrics.get(facts.metric) if reading is not None and facts.metric is not None else None


def _step(event: Mapping[str, Any]) -> Step:
    return Step(
        step=int(event["step"]),
        loss=float(event.get("mean_loss", event["loss"])),
        grad_norm=float(event.get("max_grad_norm", event["grad_norm"])),
        learning_rate=float(event["learning_rate"]),
    )


def _reading(event: Mapping[str, Any]) -> Reading:
    probe = event.get("probe") or {}
    return Reading(
        step=int(event["step"]),
        # The probe's is plain cross-entropy, as that of its training rows is; an objective may be something else.
        loss=probe.get("loss", event.get("loss")),
        loss_error=probe.get("loss_error"),
        accuracy=probe.get("accuracy"),
        train_loss=probe.get("train_loss"),
        train_accuracy=probe.get("train_accuracy"),
        metrics=dict(event.get("metrics") or {}),
        answers=dict(event.get("answers") or {}),
        best=bool(event.get("best", False)),
    )
