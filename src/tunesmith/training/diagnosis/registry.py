"""All signs, and which of them explain others.

A sign is one function `(curves, facts) -> Diagnosis | None`. To add one, write it into the file of its family and name
it here. One cause shows in many ways: a rate that is too high also ends in a plateau. So an entry names the codes that
its diagnosis `explains`, and these are not told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.training.diagnosis import divergence, memory, progress, rows, supervision
from tunesmith.training.diagnosis.curves import Curves
from tunesmith.training.diagnosis.types import Diagnosis, TrainingFacts

Sign = Callable[[Curves, TrainingFacts], Diagnosis | None]

_OUTCOMES = frozenset(
    {
        "nothing_learnt",
        "too_few_steps",
        "rank_too_small",
        "plateau",
        "too_little_data",
        "overfitting",
        "one_answer_for_all",
    }
)
"""What many causes look like from outside."""
_RATES = frozenset({"diverging", "learning_rate_too_high", "learning_rate_too_low", "gradients_unstable"})


@dataclass(frozen=True, slots=True)
class Entry:
    """A sign and the codes that its diagnosis explains."""

    sign: Sign
    explains: frozenset[str] = frozenset()


SIGNS: tuple[Entry, ...] = (
    Entry(divergence.row_not_finite, _OUTCOMES | _RATES | {"labels_unrelated"}),
    Entry(supervision.answers_not_learnt, _OUTCOMES | _RATES | {"labels_unrelated", "end_not_learnt"}),
    Entry(supervision.end_not_learnt),
    Entry(progress.nothing_learnt, _OUTCOMES | _RATES | {"labels_unrelated"}),
    Entry(divergence.diverging, _OUTCOMES | _RATES | {"labels_unrelated", "end_not_learnt"}),
    Entry(divergence.learning_rate_too_high, _OUTCOMES | _RATES | {"labels_unrelated"}),
    Entry(progress.guessing_at_far_too_high_a_rate, _OUTCOMES | _RATES | {"labels_unrelated"}),
    Entry(progress.learning_rate_too_low, _OUTCOMES | {"labels_unrelated"}),
    Entry(rows.differing_validation, _OUTCOMES | {"labels_unrelated", "test_differs"}),
    Entry(rows.labels_unrelated, _OUTCOMES),
    Entry(rows.differing_test),
    Entry(rows.one_answer_for_all, _OUTCOMES),
    Entry(memory.too_little_data, _OUTCOMES),
    Entry(memory.overfitting),
    Entry(progress.rank_too_small, _OUTCOMES),
    Entry(progress.too_few_steps, _OUTCOMES),
    Entry(progress.plateau),
    Entry(divergence.gradients_unstable),
)
"""In the order of telling: what explains others first."""


def diagnose(
    history: Iterable[Mapping[str, Any]], facts: TrainingFacts, *, finished: bool = True
) -> tuple[Diagnosis, ...]:
    """What is wrong with a training, causes before what they explain; `()` for one that looks well.

    Parameters
    ----------
    history: `train_step` and `validation` events in order (see `curves.py` for the fields that are read).
    finished: False while steps are still to come; signs that need the whole run then wait.

    Cheap (arithmetic on the events): may be called at every validation.
    """
    curves = Curves.from_history(history, finished)
    found: list[Diagnosis] = []
    explained: set[str] = set()
    for entry in SIGNS:
        diagnosis = entry.sign(curves, facts)
        if diagnosis is not None and diagnosis.code not in explained:
            found.append(diagnosis)
            explained |= entry.explains
    return tuple(found)
