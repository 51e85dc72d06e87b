"""Signs that too little was learnt: steps too small or too few, too little capacity, a standstill."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from tunesmith.training.diagnosis.curves import Curves, Reading
from tunesmith.training.diagnosis.divergence import lower_rate, rate_is_low, still_descending, stuck_above_guessing
from tunesmith.training.diagnosis.types import Diagnosis, TrainingFacts
from tunesmith.training.diagnosis.wording import nats, percent, rate

_NOTHING = 0.02
"""Share of the loss: whatever works at all takes more than this off an untrained answer."""
_LITTLE = 0.5
"""Share of the start that is left, where guessing has no known loss: the form of answers alone is worth more."""
_GUESSING = 0.5
"""Share of the loss of guessing by frequency: a model that still has more reads little out of its inputs."""
_STILL_FALLING = 0.1
"""Share of the loss that the last quarter of the learning (by learning rates, not by steps) took off."""
_LAST_QUARTER = 0.75
_READINGS = 4
"""With fewer, the level at the beginning of the last quarter would be a guess."""
_AT_GUESSING = 0.15
"""Share of the loss of guessing below which a model has learnt something from the inputs."""
_FAR_TOO_HIGH = 10
"""Times the usual learning rate at which steps are the suspect for a standstill; up to three times is common."""
_SMALL_RANK = 4
"""The ranks people choose to save memory; from 8 on, more rank rarely changes what a task needs."""
_USUAL_RANK = 16
_OFTEN = 6
"""Passes by which adapters of the usual rank have read more than half of what answers hold out of their rows, at the
usual rate; the slowest of the healthy runs of `benchmarks/diagnosis.py` took five."""
_ERRORS = 3.0
"""Standard errors from which a difference is sure."""
_KNOWN = 0.9
"""Token accuracy on training rows from which free texts count as learnt."""
_GOOD = 0.95
"""Task metric that leaves nothing to complain of."""
_MOSTLY_WRONG = 0.5
"""Task metric below which a free text's answers are not what was asked for."""


def nothing_learnt(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """The training loss is where it was, at a learning rate that should have moved it."""
    flat = _flat(curves, facts)
    if flat is None or rate_is_low(facts):
        return None
    step, level = flat
    norm = median(s.grad_norm for s in curves.steps) if curves.steps else math.nan
    silent = norm < 1e-6
    return Diagnosis(
        code="nothing_learnt",
        severity="error",
        title="Nothing is learnt",
        seen=f"The training loss was {nats(curves.start_loss or 0)} before training and is {nats(level)} at step {step}"
        + (", and gradients are zero." if silent else "."),
        why="No gradient reaches the trained weights: they are cut off, or what is learnt does not depend on them."
        if silent
        else "The steps do not change the answers: the weights that are trained have too little say in them.",
        remedy="Train adapters on all linear layers, at the usual learning rate.",
        changes={"method.target_modules": "all-linear", "method.last_layers": None, "train.learning_rate": "auto"},
        steps=(step,),
    )


def learning_rate_too_low(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """The loss comes down slowly and evenly, and is far from anything learnt."""
    found = _unfinished(curves, facts) or (_flat(curves, facts) if rate_is_low(facts) else None)
    if found is None or not (rate_is_low(facts) or facts.usual_learning_rate is None):
        return None
    step, level = found
    times = (facts.usual_learning_rate or 0) / facts.learning_rate
    usual = facts.usual_learning_rate if facts.usual_learning_rate is not None else 10 * facts.learning_rate
    return Diagnosis(
        code="learning_rate_too_low",
        severity="error",
        title="The learning rate is too low",
        seen=f"The training loss fell evenly from {nats(curves.start_loss or 0)} to only {nats(level)} in {step:,} "
        "steps, without ever flattening" + _against_guessing(level, facts) + ".",
        why=f"Steps at {rate(facts.learning_rate)} are too small"
        + (f"; the usual rate for this base and method is {times:,.0f} times as high" if times else "")
        + ". The direction is right, the way too long.",
        remedy="Train again with a higher learning rate.",
        changes={"train.learning_rate": float(f"{usual:.2g}")},
        steps=(step,),
    )


def too_few_steps(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """The loss was still coming down when the steps ran out."""
    if not curves.far(facts, 1.0) or rate_is_low(facts):
        return None
    found = _unfinished(curves, facts) or _cut_short(curves, facts)
    if found is None:
        return None
    step, level = found
    return Diagnosis(
        code="too_few_steps",
        severity="warning",
        title="Training ended too early",
        seen=f"After {step:,} steps the training loss is {nats(level)} and was still falling"
        + _against_guessing(level, facts) + ".",
        why="There were too few steps to learn what the rows hold; the validation loss was falling too.",
        remedy="Train longer.",
        changes={"train.epochs": float(f"{3 * facts.epochs:.3g}"), "train.max_steps": None, "train.patience": 0},
        steps=(step,),
    )  # fmt: skip


def rank_too_small(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """The training rows themselves are not known after the whole run, with an adapter of very few directions."""
    if facts.rank is None or facts.rank > _SMALL_RANK:
        return None
    rest = _standstill(curves, facts)
    found = rest or _seen_often_and_not_known(curves, facts)
    if found is None:
        return None
    step, level = found
    share = f", {facts.trainable / facts.parameters:.2%} of the weights" if facts.trainable and facts.parameters else ""
    came = "came to rest at" if rest else f"is still, after {_passes(step, facts):.0f} passes,"
    end = "the task needs more" if rest else "with more of them the same steps learn more"
    return Diagnosis(
        code="rank_too_small",
        severity="warning",
        title="The adapter is too small for this task",
        seen=f"The loss of the training rows themselves {came} {nats(level)} " + ("by" if rest else "at")
        + f" step {step:,}" + _against_guessing(level, facts) + ". Rows seen many times are still not known"
        + _known_share(curves) + ", and validation rows are hardly worse." + _against_words(curves, facts),
        why=f"With rank {facts.rank}{share}, each layer can move in {facts.rank} direction"
        + ("" if facts.rank == 1 else "s") + f" only; {end}.",
        remedy=f"Raise the rank to {_USUAL_RANK} (alpha follows).",
        changes={"method.rank": _USUAL_RANK, "method.alpha": "auto"},
        steps=(step,),
    )  # fmt: skip


def guessing_at_far_too_high_a_rate(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """After the whole run inputs are not read at all, with steps many times the usual size."""
    last, usual, prior = curves.last, facts.usual_learning_rate, facts.prior_loss
    if last is None or last.train_loss is None or usual is None or prior is None:
        return None
    if len(curves.readings) < 3 or not curves.far(facts, 1.0):
        return None
    if facts.learning_rate < _FAR_TOO_HIGH * usual or last.train_loss < (1 - _AT_GUESSING) * prior:
        return None
    return Diagnosis(
        code="learning_rate_too_high",
        severity="error",
        title="The learning rate is too high",
        seen=f"After the whole training, the loss of the training rows themselves is {nats(last.train_loss)} (step "
        f"{last.step:,})" + _against_guessing(last.train_loss, facts) + ".",
        why=f"With {rate(facts.learning_rate)}, {facts.learning_rate / usual:.0f} times the usual one, the first steps "
        "overwrite what the base makes of its input; what is left is to guess.",
        remedy="Train again with a lower learning rate.",
        changes=lower_rate(facts),
        steps=(last.step,),
    )  # fmt: skip


def plateau(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """The same standstill, with an adapter of the usual size or all weights."""
    found = _standstill(curves, facts)
    if found is None or (facts.rank is not None and facts.rank <= _SMALL_RANK):
        return None
    step, level = found
    changes: dict[str, Any] = {
        "train.epochs": float(f"{2 * facts.epochs:.3g}"),
        "train.max_steps": None,
        "train.patience": 0,
    }
    if facts.rank is not None:
        changes |= {"method.rank": 2 * facts.rank, "method.alpha": "auto"}
    return Diagnosis(
        code="plateau",
        severity="warning",
        title="Training stands still",
        seen=f"The loss of the training rows themselves came to rest at {nats(level)} by step {step:,}"
        + _against_guessing(level, facts) + _known_share(curves) + ".",
        why="The model has learnt the form of the answers and little of what decides them. Some tasks stay so for long "
        "before they are understood; others need a larger base.",
        remedy="Train longer with more capacity; where that does not help, take a larger base.",
        changes=changes,
        steps=(step,),
    )  # fmt: skip


def _flat(curves: Curves, facts: TrainingFacts) -> tuple[int, float] | None:
    """(step, training loss) where, well into the run, no level has moved away from the start, and answers are not good.

    A base that answers well has nothing left to learn; the verdict will say so.
    """
    start, levels = curves.start_loss, curves.train_levels()
    metric = curves.metric(curves.kept, facts)
    if start is None or not levels or not curves.far(facts, 0.3) or (metric is not None and metric >= _GOOD):
        return None
    moved = max(abs(start - level) for _, level in levels)
    return levels[-1] if moved <= _NOTHING * start else None


def _unfinished(curves: Curves, facts: TrainingFacts) -> tuple[int, float] | None:
    """(step, training loss) of a run that still comes down about evenly and has not even learnt to guess."""
    if not curves.far(facts, 0.5) or not still_descending(curves, facts):
        return None
    if facts.prior_loss is not None:
        return stuck_above_guessing(curves, facts)
    start, levels = curves.start_loss, curves.train_levels()
    assert start is not None  # still_descending needs it
    step, level = levels[-1]
    return (step, level) if level > _LITTLE * start and rate_is_low(facts) else None


def _cut_short(curves: Curves, facts: TrainingFacts) -> tuple[int, float] | None:
    """(step, training loss) where the rows are not known yet and both losses fell to the very end."""
    last, lowest = curves.last, curves.lowest
    if (
        last is None
        or lowest is None
        or len(curves.readings) < _READINGS
        or last.train_loss is None
        or last.step != lowest.step
        or facts.prior_loss is None
    ):
        return None
    before = curves.level_at(curves.spent_by(last.step, _LAST_QUARTER))
    falling = last.train_loss < (1 - _STILL_FALLING) * before
    far_off = last.train_loss > _GUESSING * facts.prior_loss
    return (last.step, last.train_loss) if falling and far_off else None


def _standstill(curves: Curves, facts: TrainingFacts) -> tuple[int, float] | None:
    """(step, training loss) where training rows are not known, nothing moves any more, and validation rows do as well.

    Where answers repeat, "not known" is against guessing by frequency. Free texts are never wholly predictable, so a
    rest is normal for them: a standstill is claimed only of small adapters whose answers are mostly wrong.
    """
    last = curves.last
    if last is None or last.train_loss is None or len(curves.readings) < _READINGS or not curves.far(facts, 1.0):
        return None  # some tasks stay at guessing for long and are then understood at once
    before = curves.level_at(curves.spent_by(last.step, _LAST_QUARTER))
    resting = last.train_loss > (1 - _STILL_FALLING) * before
    if facts.prior_loss is not None:
        not_known = last.train_loss > _GUESSING * facts.prior_loss
    else:
        metric = curves.metric(curves.kept, facts)
        small = facts.rank is not None and facts.rank <= _SMALL_RANK
        known = last.train_accuracy is not None and last.train_accuracy >= _KNOWN
        not_known = small and metric is not None and metric < _MOSTLY_WRONG and not known
    return (last.step, last.train_loss) if not_known and resting and not _by_heart(last) else None


def _seen_often_and_not_known(curves: Curves, facts: TrainingFacts) -> tuple[int, float] | None:
    """(step, training loss) where rows that were seen many times at a fair rate are not known, nor validation rows.

    Not known: half of what answers hold is not read out of the inputs, or counting the words of validation rows would
    answer them surely better. Whether the loss still falls does not matter then: usual adapters are done by now.
    """
    last = curves.last
    if last is None or last.train_loss is None or facts.prior_loss is None or not curves.far(facts, 1.0):
        return None
    if rate_is_low(facts) or _passes(last.step, facts) < _OFTEN or _by_heart(last):
        return None
    not_known = last.train_loss > _GUESSING * facts.prior_loss or _below_words(curves, facts)
    return (last.step, last.train_loss) if not_known else None


def _below_words(curves: Curves, facts: TrainingFacts) -> bool:
    """Whether counting words surely answers held-out rows better than the kept weights answer validation rows."""
    words, kept = facts.answers_from_words, curves.kept
    if words is None or kept is None or not {"right", "rows"} <= kept.answers.keys() or not words.above(words.chance):
        return False
    rows, right = kept.answers["rows"], kept.answers["right"]
    spread = (right * rows + 0.5) / (rows + 1)  # a half more hit and miss: never certain at 0 or 1
    return words.score - right > _ERRORS * math.hypot(words.error, math.sqrt(spread * (1 - spread) / rows))


def _by_heart(last: Reading) -> bool:
    """Whether training rows are known so much better than validation rows that capacity is not what is missing."""
    return last.loss is not None and last.train_loss is not None and last.loss > 2 * last.train_loss


def _passes(step: int, facts: TrainingFacts) -> float:
    """How often each row was seen by a step."""
    return facts.epochs * step / max(1, facts.steps)


def _against_words(curves: Curves, facts: TrainingFacts) -> str:
    if facts.answers_from_words is None or not _below_words(curves, facts):
        return ""
    kept = curves.kept
    assert kept is not None  # `_below_words` read it
    return (
        f" Counting the words of an input answers {percent(facts.answers_from_words.score)} of held-out rows rightly; "
        f"the tuned model {percent(kept.answers['right'])} of validation rows."
    )


def _against_guessing(level: float, facts: TrainingFacts) -> str:
    if facts.prior_loss is None:
        return ""
    return f"; guessing by how often each answer occurs would give {nats(facts.prior_loss)}"


def _known_share(curves: Curves) -> str:
    last = curves.last
    return (
        ""
        if last is None or last.train_accuracy is None
        else f" ({percent(last.train_accuracy)} of their answer tokens)"
    )
