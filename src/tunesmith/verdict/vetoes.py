"""What keeps a tuned model from being shipped although it gains enough: a gate, a slice that got worse, forgetting."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.errors import RecipeError
from tunesmith.evaluation.statistics import cluster_sums, holm, mcnemar_exact, swap_test
from tunesmith.evaluation.types import Evaluation
from tunesmith.tasks.types import FloatArray
from tunesmith.verdict import wording
from tunesmith.verdict.types import Forgetting, Limits

FEWEST_SLICE_ROWS = 10
"""On fewer rows not even ten answers out of ten got worse would stand out among several slices."""
_SWAPS = 10_000

Slices = Mapping[str, Collection[str]]
"""Row ids by the name of a slice; a row may be in several."""


@dataclass(frozen=True, slots=True)
class SliceDifference:
    """Tuned minus an alternative on the rows of one slice; `p_value` is adjusted for the number of slices (Holm)."""

    name: str
    difference: float
    p_value: float
    n: int


def vetoes(
    tuned: Evaluation,
    alternative: Evaluation | None,
    metric: str,
    *,
    limits: Limits,
    slices: Slices,
    forgetting: Forgetting | None,
    confidence: float,
    clusters: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Reasons not to ship `tuned`, as sentences; none if nothing speaks against it."""
    found = _below_gates(tuned, limits.gates)
    if alternative is not None and limits.slice_loss is not None:
        worse = slice_differences(tuned, alternative, metric, slices, clusters)
        found += _regressions(worse, alternative.candidate, limits.slice_loss, confidence)
    if forgetting is not None:
        found += _forgotten(forgetting, limits)
    return tuple(found)


def slice_differences(
    tuned: Evaluation, other: Evaluation, metric: str, slices: Slices, clusters: Mapping[str, str] | None = None
) -> list[SliceDifference]:
    """Tuned minus `other` on every slice of at least `FEWEST_SLICE_ROWS` rows, the worst first.

    The mean of the rows' scores is compared, by McNemar's exact test where they are right or wrong, else by swapping
    answers; those of whole clusters where rows hang together (`clusters`: by row id, as in `evaluation.comparison`).
    Every slice is a chance of a false alarm, so the p-values are adjusted for their number.
    """
    a = {row.id: row.scores[metric] for row in tuned.rows}
    b = {row.id: row.scores[metric] for row in other.rows}
    names, plain, sizes = [], [], []
    for name, ids in slices.items():
        if len(ids) < FEWEST_SLICE_ROWS:
            continue
        scores = np.array([[a[i], b[i]] for i in ids])
        names.append((name, float((scores[:, 0] - scores[:, 1]).mean())))
        plain.append(_p_value(scores, [clusters[i] for i in ids] if clusters is not None else None))
        sizes.append(len(ids))
    found = [
        SliceDifference(name, difference, p_value, n)
        for (name, difference), p_value, n in zip(names, holm(plain), sizes, strict=True)
    ]
    return sorted(found, key=lambda one: (one.difference, one.name))


def _p_value(scores: FloatArray, clusters: Sequence[str] | None) -> float:
    """Two-sided, of scores [n, 2]."""
    if clusters is None and np.isin(scores, (0, 1)).all():
        right = scores > 0.5
        return mcnemar_exact(int((right[:, 0] & ~right[:, 1]).sum()), int((~right[:, 0] & right[:, 1]).sum()))
    units = scores if clusters is None else cluster_sums(scores, clusters)
    columns = [units[:, :1], units[:, 1:]]
    return swap_test(columns, [(0, 1)], lambda sums: sums[..., 0] / len(scores), resamples=_SWAPS, seed=0)[0]


def _below_gates(tuned: Evaluation, gates: Mapping[str, float]) -> list[str]:
    values = {value.metric: value for value in tuned.metrics}
    found = []
    for metric, least in gates.items():
        if metric not in values:
            raise RecipeError(
                f"there is a gate for {metric!r}, which the task does not measure",
                where="verdict.gates",
                expected=", ".join(values),
                fix="name one of these, or leave the gate out",
            )
        if values[metric].value < least:
            found.append(
                f"Its {wording.metric_name(metric)} of {wording.percent(values[metric].value)} is below the "
                f"{wording.percent(least)} required."
            )
    return found


def _regressions(
    differences: Sequence[SliceDifference], alternative: str, allowed: float, confidence: float
) -> list[str]:
    found = []
    for one in differences:
        if one.difference < -allowed and one.p_value <= 1 - confidence:
            found.append(
                f"On {one.name} it is surely worse than {wording.candidate_name(alternative)}: "
                f"{wording.points(one.difference)} on {one.n} rows ({wording.p_value(one.p_value)}, adjusted for all "
                "slices)."
            )
    return found


def _forgotten(forgetting: Forgetting, limits: Limits) -> list[str]:
    found = []
    rise = forgetting.perplexity_after / forgetting.perplexity_before - 1
    if limits.perplexity_rise is not None and rise > limits.perplexity_rise:
        found.append(
            f"It has forgotten general text: perplexity rose by {wording.percent(rise)}, from "
            f"{forgetting.perplexity_before:.3g} to {forgetting.perplexity_after:.3g}; at most "
            f"{wording.percent(limits.perplexity_rise)} is allowed."
        )
    skill = forgetting.skill
    if skill is not None and limits.skill_loss is not None and skill.high < -limits.skill_loss:
        found.append(
            f"It has forgotten general instructions: {wording.points(skill.difference)} against the base on {skill.n} "
            f"of them, surely more than the {wording.bare_points(limits.skill_loss)} points it may lose."
        )
    return found
