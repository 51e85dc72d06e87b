"""Signs of learning by heart: too few rows, or too many passes over them."""

from __future__ import annotations

from typing import Any

from tunesmith.training.diagnosis.curves import Curves, Reading
from tunesmith.training.diagnosis.types import Diagnosis, TrainingFacts
from tunesmith.training.diagnosis.wording import count, nats, percent

_RISE = (1.25, 0.1)
"""Factor and nats by which the validation loss must stand above its lowest, and by its standard error at least: a few
wrong answers that become ever surer make it creep up while no answer gets worse, and that is no harm."""
_FELL = 0.8
"""What the training loss must have come down to meanwhile, as a share: else both rise, which is not overfitting."""
_BETTER = 0.05
"""Gain of the task metric that outweighs a rising loss: the answers matter, not how sure the model is of them."""
_GOOD = 0.95
"""A metric that leaves nothing to complain of."""
FEW_ROWS = 100
"""Below this, more rows help more than any setting does."""


def too_little_data(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """Few rows, known by heart, while other rows are not answered."""
    if facts.rows >= FEW_ROWS:
        return None
    rising = _rise(curves, facts)
    last = curves.last
    if rising is None and not (
        last is not None and curves.far(facts, 0.5) and _gap(last) and not _fine(curves, facts, last)
    ):
        return None
    assert last is not None  # a rise has two readings
    changes: dict[str, Any] = {}
    more = ""
    if facts.rows_available is not None and facts.rows_available > facts.rows:
        more = f" The file has {facts.rows_available:,}: use them."
        changes = {"data.max_rows": None, "train.epochs": "auto"}
    elif rising is not None:
        changes = {"train.epochs": _epochs_at(rising, facts), "train.max_steps": None}
    return Diagnosis(
        code="too_little_data",
        severity="warning",
        title="Too little data",
        seen=f"{count(facts.rows, 'row')} were seen {facts.epochs:.0f} times each. Their loss is "
        f"{nats(curves.level_at(last.step))}, that of validation rows {nats(last.loss or 0)}"
        + (f", up from {nats(rising.loss or 0)} at step {rising.step}" if rising is not None else "")
        + _accuracies(last) + ".",
        why="So few rows are learnt by heart before what they have in common is understood.",
        remedy=f"Collect more rows; some hundred is a good start.{more} With no more rows, train for fewer epochs.",
        changes=changes,
        steps=(rising.step, last.step) if rising is not None else (last.step,),
    )  # fmt: skip


def overfitting(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """The validation loss rises while the training loss falls, and answers get no better."""
    rising = _rise(curves, facts)
    last = curves.last
    if rising is None or last is None or rising.loss is None or last.loss is None:
        return None
    return Diagnosis(
        code="overfitting",
        severity="warning",
        title="Overfitting",
        seen=f"The validation loss was lowest, {nats(rising.loss)}, at step {rising.step} and is {nats(last.loss)} at "
        f"step {last.step}, while the training loss fell from {nats(curves.level_at(rising.step))} to "
        f"{nats(curves.level_at(last.step))}" + _metric_words(curves, facts, rising, last) + ".",
        why="From then on the model learnt its rows by heart instead of what they have in common.",
        remedy="Train for fewer epochs, or with more rows; a little dropout and weight decay slow it down.",
        changes={"train.epochs": _epochs_at(rising, facts), "train.max_steps": None, "method.dropout": 0.1}
        if facts.method == "lora"
        else {"train.epochs": _epochs_at(rising, facts), "train.max_steps": None, "train.weight_decay": 0.1},
        steps=(rising.step, last.step),
    )  # fmt: skip


def _rise(curves: Curves, facts: TrainingFacts) -> Reading | None:
    """The reading with the lowest validation loss, where the two newest are clearly above it without better answers."""
    lowest, last = curves.lowest, curves.last
    if lowest is None or last is None or lowest.loss is None or len(curves.readings) < 3:
        return None
    factor, nats_up = _RISE
    newest = [r.loss for r in curves.readings[-2:]]
    least = max(factor * lowest.loss, lowest.loss + max(nats_up, last.loss_error or 0.0))
    if any(loss is None or loss < least for loss in newest):
        return None
    if curves.level_at(last.step) > _FELL * curves.level_at(lowest.step) or _fine(curves, facts, last):
        return None
    then, now = curves.metric(lowest, facts), curves.metric(last, facts)
    return None if then is not None and now is not None and now > then + _BETTER else lowest


def _gap(last: Reading) -> bool:
    """Training rows known, validation rows not."""
    if last.train_loss is None or last.loss is None:
        return False
    return last.loss > 4 * last.train_loss and last.loss > last.train_loss + 0.2


def _fine(curves: Curves, facts: TrainingFacts, last: Reading) -> bool:
    metric = curves.metric(last, facts)
    return metric is not None and metric >= _GOOD


def _epochs_at(reading: Reading, facts: TrainingFacts) -> float:
    """Passes over the rows by a reading, with some room: a schedule that ends there learns more per step."""
    return float(f"{max(1.0, 1.2 * facts.epochs * reading.step / max(1, facts.steps)):.2g}")


def _accuracies(reading: Reading) -> str:
    if reading.train_accuracy is None or reading.accuracy is None:
        return ""
    return f"; {percent(reading.train_accuracy)} of the tokens are right there, {percent(reading.accuracy)} here"


def _metric_words(curves: Curves, facts: TrainingFacts, then: Reading, now: Reading) -> str:
    first, second = curves.metric(then, facts), curves.metric(now, facts)
    if first is None or second is None or facts.metric is None:
        return ""
    return f"; {facts.metric.replace('_', ' ')} went from {percent(first)} to {percent(second)}"
