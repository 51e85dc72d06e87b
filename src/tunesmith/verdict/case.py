"""One case to decide: what was measured, what is asked, and the few questions the rules put to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tunesmith.errors import VerificationError
from tunesmith.evaluation.statistics import AcrossSeeds, smallest_detectable
from tunesmith.evaluation.statistics import rows_needed as rows_for_effect
from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference
from tunesmith.tasks.types import FloatArray
from tunesmith.verdict import wording
from tunesmith.verdict.costs import burden, is_tuned, total_cost
from tunesmith.verdict.sample_size import rows_needed, two_digits_up, z_value, zero_event_bound
from tunesmith.verdict.types import CandidateCost, Volume

_FEW_DIFFERING = 5
_ROUNDING = 1e-9
"""A gain of exactly `min_gain` must count as one although 0.87 - 0.86 is not exactly 0.01."""


@dataclass(frozen=True)
class Case:
    """What was measured and what is asked, with the few questions the rules put to it.

    `margin`: by how much the cheaper of two may be worse and still be taken; None asks every change for `min_gain`.
    What is cheaper follows from `costs` over the `volume`; without either, nothing is. `trainings`: where tuned was
    trained several times, what its value (under its own name) and its difference to each alternative owe to rows and
    to trainings.
    """

    evaluations: Mapping[str, Evaluation]
    differences: Sequence[PairedDifference]
    metric: str
    min_gain: float
    target: float | None
    confidence: float
    power: float
    tuned: str
    margin: float | None = None
    volume: Volume | None = None
    costs: Mapping[str, CandidateCost] = field(default_factory=dict)
    trainings: Mapping[str, AcrossSeeds] = field(default_factory=dict)

    @property
    def candidates(self) -> list[str]:
        return [self.tuned, *self.alternatives]

    @property
    def alternatives(self) -> list[str]:
        return [name for name in self.evaluations if not is_tuned(name, self.tuned)]

    def value(self, candidate: str) -> MetricValue:
        for value in self.evaluations[candidate].metrics:
            if value.metric == self.metric:
                return value
        raise VerificationError(f"candidate {candidate!r} has no value of the deciding metric {self.metric!r}")

    def pair(self, alternative: str) -> PairedDifference:
        """Tuned minus `alternative`, with an interval no narrower than what this many rows can show."""
        pair = self.measured(self.tuned, alternative)
        if pair is None:
            raise VerificationError(
                f"the difference between {self.tuned!r} and {alternative!r} on {self.metric!r} was not measured"
            )
        return self._widened(pair)

    def measured(self, a: str, b: str) -> PairedDifference | None:
        """a minus b as it was measured, whichever way round."""
        for pair in self.differences:
            if pair.metric == self.metric and {pair.a, pair.b} == {a, b}:
                return pair if pair.a == a else reversed_pair(pair)
        return None

    def _widened(self, pair: PairedDifference) -> PairedDifference:
        """Where next to no row differs, resampling shows next to no spread, although unseen rows may well differ.

        Of rows that hang together, it is clusters that are resampled, so clusters are counted.
        """
        if self.differing(pair) >= _FEW_DIFFERING:
            return pair
        bound = zero_event_bound(pair.clusters or pair.n, self.confidence)
        return replace(
            pair,
            low=max(-1.0, min(pair.low, pair.difference - bound)),
            high=min(1.0, max(pair.high, pair.difference + bound)),
        )

    def differing(self, pair: PairedDifference) -> int:
        """Rows, or clusters of them, on which the two measured differently.

        Results kept without a count of clusters get the highest it can be.
        """
        if pair.differing_clusters is not None:
            return pair.differing_clusters
        rows = int(np.count_nonzero(self.row_differences(pair)))
        return rows if pair.clusters is None else min(rows, pair.clusters)

    def row_differences(self, pair: PairedDifference) -> FloatArray:
        """The rows' scores of one candidate minus those of the other [n]."""
        return self._scores[pair.a] - self._scores[pair.b]

    @cached_property
    def _scores(self) -> Mapping[str, FloatArray]:
        """The rows' scores of every candidate, in the order of tuned's rows."""
        order = [row.id for row in self.evaluations[self.tuned].rows]
        found = {}
        for name in self.candidates:
            by_id = {row.id: row.scores[self.metric] for row in self.evaluations[name].rows}
            found[name] = np.array([by_id[row_id] for row_id in order], dtype=np.float64)
        return found

    def check_rows(self) -> None:
        """Raise `VerificationError` unless all answered the same rows and every row has a score."""
        expected = {row.id for row in self.evaluations[self.tuned].rows}
        for name in self.candidates:
            rows = self.evaluations[name].rows
            if not rows or {row.id for row in rows} != expected:
                raise VerificationError(
                    f"candidate {name!r} did not answer the same test rows as {self.tuned!r}",
                    expected=f"the same {max(len(expected), 1)} rows",
                    fix="evaluate all candidates on the frozen test set of one run",
                )
            if any(self.metric not in row.scores for row in rows):
                raise VerificationError(f"candidate {name!r} has rows without a score of {self.metric!r}")

    def best_alternative(self) -> str | None:
        """The highest value; of equal ones the lightest (`costs.burden`), so that the answer does not vary.

        With a margin, the cheapest of those that are at the target and surely not worse than it by more than that.
        """

        def rank(name: str) -> tuple[Any, ...]:
            return -self.value(name).value, *burden(name, self.costs)

        top = min(self.alternatives, key=rank, default=None)
        if top is None or self.margin is None:
            return top
        as_good = [top]
        for name in self.alternatives:
            pair = self.measured(name, top) if self.cheaper(name, top) and self.at_target(name) else None
            if pair is not None and self._widened(pair).low >= -self.margin:
                as_good.append(name)
        return min(as_good, key=lambda name: (self.total_cost(name) or 0.0, rank(name)))

    def total_cost(self, name: str) -> float | None:
        """One-off cost and that of all requests of the volume; None where it is not known."""
        if self.volume is None or name not in self.costs:
            return None
        return total_cost(self.costs[name], self.volume.requests)

    def cheaper(self, name: str, other: str) -> bool:
        """Whether a candidate surely costs less in all; False where a cost is not known."""
        ours, theirs = self.total_cost(name), self.total_cost(other)
        return ours is not None and theirs is not None and ours < theirs

    def gain_asked(self, alternative: str) -> float:
        """What tuned has to gain over an alternative: `min_gain`, or less than nothing where it is the cheaper one."""
        if self.margin is not None and self.cheaper(self.tuned, alternative):
            return -self.margin
        return self.min_gain

    def worth_it(self, pair: PairedDifference) -> bool:
        """Whether tuned is surely good enough against an alternative to be taken in its place.

        Surely better, and by the smallest gain worth having at the best estimate; or, where it is cheaper and a margin
        is given, surely not worse by more than that (non-inferiority: one-sided at half of 1 - confidence).
        """
        asked = self.gain_asked(pair.b)
        if asked < 0:
            return pair.low >= asked - _ROUNDING
        return self.surely_better(pair) and self.gains_enough(pair)

    def gains_too_little(self, pair: PairedDifference, pairs: Mapping[str, PairedDifference]) -> bool:
        """Whether tuned surely does not gain what is asked of it over the best alternative."""
        return self.highest_gain(pair, pairs) < self.gain_asked(pair.b)

    def out_of_the_running(self, name: str, best: str) -> bool:
        """Whether an alternative surely falls short of the best one by more than the margin; tuned owes it nothing."""
        if self.margin is None or name == best:
            return False
        pair = self.measured(best, name)
        return pair is not None and self._widened(pair).low > max(self.margin, self.min_gain)

    def tied_with(self, chosen: str) -> tuple[str, ...]:
        """Other alternatives that may be better than the chosen one by the smallest gain worth having or more.

        The chosen one was picked by these rows, so intervals are taken at the confidence at which all of them hold
        together (Bonferroni). Only where the difference was measured.
        """
        rivals = [name for name in self.alternatives if name != chosen]
        stretch = z_value(1 - (1 - self.confidence) / max(len(rivals), 1)) / z_value(self.confidence)
        tied = []
        for name in rivals:
            pair = self.measured(name, chosen)
            if pair is not None and pair.difference + stretch * (pair.high - pair.difference) >= self.min_gain:
                tied.append(name)
        return tuple(tied)

    def surely_better(self, pair: PairedDifference) -> bool:
        return pair.low > 0 and (pair.p_value is None or pair.p_value <= 1 - self.confidence)

    def surely_below_target(self, candidate: str) -> bool:
        return self.target is not None and self.value(candidate).high < self.target

    def at_target(self, candidate: str) -> bool:
        return self.target is None or self.value(candidate).value >= self.target - _ROUNDING

    def gains_enough(self, pair: PairedDifference) -> bool:
        return pair.difference >= self.min_gain - _ROUNDING

    def highest_gain(self, pair: PairedDifference, pairs: Mapping[str, PairedDifference]) -> float:
        """The gain over the best alternative that is still possible, allowing for how that one was found.

        It was picked for scoring highest on these very rows, so its lead is flattered. With m alternatives that could
        have been picked as well (their intervals reach into its own), the upper end is taken at the confidence at which
        all m hold together (Bonferroni): the interval's upper half is stretched to that level.
        """
        return pair.difference + (pair.high - pair.difference) * self._stretch(pair, pairs)

    def _stretch(self, pair: PairedDifference, pairs: Mapping[str, PairedDifference]) -> float:
        rivals = sum(1 for other in pairs.values() if other.low <= pair.high)
        return z_value(1 - (1 - self.confidence) / max(rivals, 1)) / z_value(self.confidence)

    def rows_for_difference(self, pair: PairedDifference, pairs: Mapping[str, PairedDifference]) -> int:
        """Rows on which tuned will be surely worth it against an alternative, or surely not."""
        z = z_value(self.confidence)
        z_less = z * self._stretch(pair, pairs)
        asked = self.gain_asked(pair.b)
        return rows_needed(
            pair.difference,
            self._difference_variance(pair),
            pair.n,
            power=self.power,
            yes_from=lambda error: max(asked, z * error) if asked >= 0 else asked + z * error,
            no_below=lambda error: asked - z_less * error,
            asked=asked or None,
        )

    def in_doubt_between_trainings(self, name: str) -> AcrossSeeds | None:
        """What several trainings show of a candidate, where they are more in doubt than the rows; else None."""
        across = self.trainings.get(name)
        return across if across is not None and across.seed_error > across.row_error else None

    def detectable_gain(self, pair: PairedDifference) -> float:
        """The smallest true gain that these rows show with the power asked for."""
        error = math.sqrt(self._difference_variance(pair) / pair.n)
        return smallest_detectable(error, confidence=self.confidence, power=self.power)

    def rows_if_gain_is_true(self, pair: PairedDifference) -> int | None:
        """Rows that show the gain if it truly is as measured; None where it is not worth having."""
        if pair.difference <= 0 or not self.gains_enough(pair):
            return None
        error = math.sqrt(self._difference_variance(pair) / pair.n)
        needed = rows_for_effect(pair.difference, error, pair.n, confidence=self.confidence, power=self.power)
        return two_digits_up(needed) if needed is not None else None

    def rows_for_target(self, candidate: str, *, surely: bool) -> int:
        """Rows on which `candidate` will be at the target (`surely`: with its whole interval) or surely below it."""
        value = self.value(candidate)
        z = z_value(self.confidence)
        assert self.target is not None
        return rows_needed(
            value.value - self.target,
            max(value.n * ((value.high - value.low) / (2 * z)) ** 2, 1 / (value.n + 1)),
            value.n,
            power=self.power,
            yes_from=lambda error: z * error if surely else 0.0,
            no_below=lambda error: -z * error,
            asked=None,
        )

    def _difference_variance(self, pair: PairedDifference) -> float:
        """Variance per row of the paired difference.

        A metric that is the mean of its rows' scores has it in the rows; for others (an F1 from counts of all rows)
        and for rows that hang together or several trainings it follows from the interval, whose variance falls with
        1/n. One more row that differs is always allowed for.
        """
        rows = self.row_differences(pair)
        floor = 1 / (pair.n + 1)
        from_interval = pair.n * ((pair.high - pair.low) / (2 * z_value(self.confidence))) ** 2
        is_mean = len(rows) > 1 and abs(float(rows.mean()) - pair.difference) < 1e-6
        if is_mean and pair.clusters is None and pair.b not in self.trainings:
            return max(float(rows.var(ddof=1)), floor)
        return max(from_interval, floor)

    # Sentences.

    def value_text(self, candidate: str, *, with_interval: bool = False) -> str:
        value = self.value(candidate)
        text = f"{wording.percent(value.value)} {wording.metric_name(self.metric)}"
        if with_interval:
            text += f" ({wording.interval(value.low, value.high, self.confidence)}, n={value.n})"
        return text

    def target_text(self) -> str:
        assert self.target is not None
        return f"the target of {wording.percent(self.target)}"

    def gain_text(self, pair: PairedDifference) -> str:
        test = f", {pair.test} {wording.p_value(pair.p_value)}" if pair.p_value is not None else ""
        interval = wording.interval(pair.low, pair.high, self.confidence)
        return (
            f"{wording.points(pair.difference)} {wording.metric_name(self.metric)} over "
            f"{wording.candidate_name(pair.b)} ({interval}, n={pair.n}{test})"
        )


def reversed_pair(pair: PairedDifference) -> PairedDifference:
    return replace(pair, a=pair.b, b=pair.a, difference=-pair.difference, low=-pair.high, high=-pair.low)
