"""Signs that steps are too large, or that a number is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.training.diagnosis.curves import Curves, Step
from tunesmith.training.diagnosis.types import Diagnosis, TrainingFacts
from tunesmith.training.diagnosis.wording import count, nats, rate

_WINDOW = 5
"""Steps whose median counts as one level: a batch of few rows is often off by a nat, three of five are not."""
_REBOUND = 1.0
"""Nats by which a level must come up again, and twice as high as it was: more than unlucky batches make."""
_PROBED_REBOUND = (1.5, 0.3)
"""The same for the loss of fixed rows, which has no noise of batches: factor and nats."""
_STUCK = (1.3, 0.15)
"""Factor and nats over the loss of guessing answers by frequency, which any working run falls below in time."""
_CLOSING = 0.25
"""Share of the way to guessing that the second half of the learning must still have made, to be on its way."""
_THROWN = (1.7, 2.0)
"""Factor and nats by which a step's loss must be above the start: batches of untrained models stay within a third."""
_COLLAPSED = 0.25
"""What is left of the gradient per nat of loss in a flat where steps have thrown the model: 0.04 there, while it grows
in healthy runs, as fewer rows make all of the loss."""
_SPIKE = 20
"""Times the median of the steps before: norms fall with the loss and vary tenfold between batches of healthy runs."""
_SPIKES = 3
"""One or two are accidents."""
_LOW_RATE = 1 / 3
"""Of the usual learning rate: above this, little learnt is rather a matter of the number of steps."""
_WORSE = 0.1
"""Share by which the loss must be above its start to be called worse: more than one probe's rows vary."""


def row_not_finite(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """A row whose own loss is no number, at weights that are."""
    broken = facts.not_finite
    if broken is None or not broken.rows:
        return None
    names = ", ".join(broken.rows[:8]) + (", …" if len(broken.rows) > 8 else "")
    return Diagnosis(
        code="row_not_finite",
        severity="error",
        title="A row makes the loss infinite or not a number",
        seen=f"At step {broken.step} the loss was no number. The weights were finite, and of the step's rows "
        f"{count(len(broken.rows), 'row')} alone gave no number: {names}.",
        why="A weight in the row, the base's embedding of one of its tokens, or the objective on it is not finite; one "
        "such row spoils every weight in a single step.",
        remedy="Correct the row or take it out of the training file. If its numbers are right, look at the base's "
        "weights for its tokens, or at the objective.",
        steps=(broken.step,),
    )


def diverging(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """The loss ends above where it began, or ended in no number without a row to blame."""
    broken = facts.not_finite
    start, levels = curves.start_loss, curves.train_levels()
    if broken is not None and not broken.rows:
        seen = f"At step {broken.step} loss or gradient was no number, although every row of the step gives one."
        steps: tuple[int, ...] = (broken.step,)
    elif start is not None and len(levels) >= 2 and min(levels[-1][1], levels[-2][1]) > start * (1 + _WORSE):
        seen = (
            f"The training loss was {nats(start)} before training and is {nats(levels[-1][1])} at step {levels[-1][0]}."
        )
        steps = (levels[-2][0], levels[-1][0])
    else:
        return None
    return Diagnosis(
        code="diverging",
        severity="error",
        title="Training makes the model worse",
        seen=seen,
        why=f"Each step overshoots: {rate(facts.learning_rate)} is too high a learning rate for this base and method.",
        remedy="Train again with a lower learning rate.",
        changes=lower_rate(facts),
        steps=steps,
    )


def learning_rate_too_high(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """What was learnt is lost again, or the loss settles where not even the frequency of answers is known."""
    rebound, thrown = _rebound(curves), _thrown(curves)
    if rebound is not None:
        low_step, low, high_step, high = rebound
        seen = f"The training loss had come down to {nats(low)} by step {low_step} and was up at {nats(high)} again "
        seen += f"around step {high_step}."
        steps: tuple[int, ...] = (low_step, high_step)
    elif thrown is not None:
        seen = f"The training loss was {nats(curves.start_loss or 0)} before training and {nats(thrown.loss)} at step "
        seen += f"{thrown.step}."
        steps = (thrown.step,)
    elif (
        (stuck := stuck_above_guessing(curves, facts)) is not None
        and not rate_is_low(facts)
        and (_gradient_collapsed(curves) or not still_descending(curves, facts))
    ):
        step, level = stuck
        seen = (
            f"The training loss has stopped at {nats(level)} (step {step}). Guessing by how often each answer occurs, "
            f"without reading the input, would give {nats(facts.prior_loss or 0)}."
        )
        steps = (step,)
    else:
        return None
    above = facts.usual_learning_rate is not None and facts.learning_rate > 1.5 * facts.usual_learning_rate
    usual = f", {facts.learning_rate / (facts.usual_learning_rate or 1):.0f} times the usual one" if above else ""
    return Diagnosis(
        code="learning_rate_too_high",
        severity="error" if stuck_above_guessing(curves, facts) is not None else "warning",
        title="The learning rate is too high",
        seen=seen,
        why=f"With {rate(facts.learning_rate)}{usual}, steps jump across the valley instead of into it, and what the "
        "base knew is overwritten.",
        remedy="Train again with a lower learning rate.",
        changes=lower_rate(facts),
        steps=steps,
    )


def gradients_unstable(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """Gradients that are again and again many times their usual size, and throw the loss up."""
    if len(curves.steps) < 4 * _WINDOW:
        return None
    norms, losses = np.array([s.grad_norm for s in curves.steps]), np.array([s.loss for s in curves.steps])
    # Windows that end before a step, for every step that has both such a window and a step after it.
    usual, level = _medians(norms)[: -_WINDOW + 3], _medians(losses)[: -_WINDOW + 3]
    here, after = norms[_WINDOW:-1], losses[_WINDOW + 1 :]
    jumps = (here > _SPIKE * usual) & (usual > 0) & (after > 2 * level + _REBOUND)
    spikes = [curves.steps[_WINDOW + 1 + i].step for i in np.flatnonzero(jumps).tolist()]
    if len(spikes) < _SPIKES:
        return None
    return Diagnosis(
        code="gradients_unstable",
        severity="warning",
        title="Gradients jump",
        seen=f"{count(len(spikes), 'time')} the gradient was more than {_SPIKE} times its usual size and the loss of "
        f"the next step went up, first at step {spikes[0]}.",
        why="Single batches push the weights far away: few rows per step, unusual rows, or a high learning rate.",
        remedy="Take more rows per step, clip gradients lower, and look at the rows of those steps.",
        changes={"train.max_grad_norm": 0.3, **lower_rate(facts)},
        steps=tuple(spikes),
    )


def stuck_above_guessing(curves: Curves, facts: TrainingFacts) -> tuple[int, float] | None:
    """(step, training loss) where, well into the run, the loss is above that of guessing by frequency."""
    levels = curves.train_levels()
    if facts.prior_loss is None or len(levels) < 3 or not curves.far(facts, 0.5):
        return None
    step, level = levels[-1]
    factor, nats_up = _STUCK
    return (step, level) if level > factor * facts.prior_loss and level > facts.prior_loss + nats_up else None


def still_descending(curves: Curves, facts: TrainingFacts, ratio: float = 4.0) -> bool:
    """Whether the second half of the learning (by summed learning rate) brought at least a quarter of the first, or
    a good part of what was missing to guessing by frequency.

    Learning that has room left goes about evenly; one that has settled has done nearly all in its first half (twelve
    times as much and more, in healthy runs).
    """
    start, levels = curves.start_loss, curves.train_levels()
    if start is None or len(levels) < 3:
        return False
    half = curves.level_at(curves.spent_by(levels[-1][0], 0.5))
    first, second = start - half, half - levels[-1][1]
    if facts.prior_loss is not None and second > _CLOSING * (half - facts.prior_loss) > 0:
        return True
    return first > 0 and second > 0 and first <= ratio * second


def rate_is_low(facts: TrainingFacts) -> bool:
    """Whether the learning rate is so far below the usual one that it is the suspect where little was learnt."""
    return facts.usual_learning_rate is not None and facts.learning_rate < _LOW_RATE * facts.usual_learning_rate


def lower_rate(facts: TrainingFacts) -> dict[str, Any]:
    """The usual learning rate where it is well below the present one, else a third of the present one."""
    usual = facts.usual_learning_rate
    lower = usual if usual is not None and usual < 0.7 * facts.learning_rate else facts.learning_rate / 3
    return {"train.learning_rate": float(f"{lower:.2g}")}


def _rebound(curves: Curves) -> tuple[int, float, int, float] | None:
    """(step, low, step, high): a level that was reached and clearly lost again."""
    probed = [(r.step, r.train_loss) for r in curves.readings if r.train_loss is not None]
    factor, nats_up = _PROBED_REBOUND
    levels = _medians(np.array([s.loss for s in curves.steps], np.float64)).tolist()
    logged = [(s.step, level) for s, level in zip(curves.steps[_WINDOW // 2 :], levels, strict=False)]
    return _climb(logged, 2.0, _REBOUND) or _climb(probed, factor, nats_up)


def _thrown(curves: Curves) -> Step | None:
    """The step whose loss is furthest above the start, where that is more than batches differ by."""
    start = curves.start_loss
    factor, nats_up = _THROWN
    if start is None or not curves.steps:
        return None
    worst = max(curves.steps, key=lambda s: s.loss if math.isfinite(s.loss) else -math.inf)
    return worst if worst.loss > factor * start and worst.loss > start + nats_up else None


def _gradient_collapsed(curves: Curves) -> bool:
    """Whether the last quarter's gradients, per nat of loss, are a small part of the first one."""
    sizes = [s.grad_norm / s.loss for s in curves.steps if s.loss > 0]
    return len(sizes) >= 4 and median(sizes[-max(1, len(sizes) // 4) :]) < _COLLAPSED * sizes[0]


def _climb(levels: Sequence[tuple[int, float]], factor: float, nats_up: float) -> tuple[int, float, int, float] | None:
    """The highest climb from the lowest level before it, where it is one by both measures."""
    found = None
    low_step, low = levels[0] if levels else (0, 0.0)
    for step, level in levels:
        if level < low:
            low_step, low = step, level
        elif level > factor * low and level > low + nats_up and (found is None or level - low > found[3] - found[1]):
            found = (low_step, low, step, level)
    return found


def _medians(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Median of every window [n - _WINDOW + 1]; empty where there is none."""
    if len(values) < _WINDOW:
        return np.empty(0)
    medians: npt.NDArray[np.float64] = np.median(np.lib.stride_tricks.sliding_window_view(values, _WINDOW), axis=1)
    return medians
