"""One case to decide: what was measured, what is asked, and the few questions the rules put to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import variance as sample_variance

from tunesmith.errors import VerificationError
from tunesmith.evaluation.statistics import rows_needed as rows_for_effect
from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference
from tunesmith.verdict import wording
from tunesmith.verdict.costs import is_tuned
from tunesmith.verdict.sample_size import rows_needed, two_digits_up, z_value, zero_event_bound
from tunesmith.verdict.types import CandidateCost

_FEW_DIFFERING_ROWS = 5
_ROUNDING = 1e-9
"""A gain of exactly `min_gain` must count as one although 0.87 - 0.86 is not exactly 0.01."""


@dataclass(frozen=True)
class Case:
    """What was measured and what is asked, with the few questions the rules put to it."""

    evaluations: Mapping[str, Evaluation]
    metric: str
    min_gain: float
    target: float | None
    confidence: float
    power: float
    tuned: str

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

    def pair(self, differences: Sequence[PairedDifference], alternative: str) -> PairedDifference:
        """Tuned minus `alternative`, with an interval no narrower than what this many rows can show."""
        for pair in differences:
            if pair.metric == self.metric and {pair.a, pair.b} == {self.tuned, alternative}:
                return self._widened(pair if pair.a == self.tuned else reversed_pair(pair))
        raise VerificationError(
            f"the difference between {self.tuned!r} and {alternative!r} on {self.metric!r} was not measured"
        )

    def _widened(self, pair: PairedDifference) -> PairedDifference:
        """Where next to no row differs, resampling shows next to no spread, although unseen rows may well differ."""
        if self.differing_rows(pair) >= _FEW_DIFFERING_ROWS:
            return pair
        bound = zero_event_bound(pair.n, self.confidence)
        return replace(
            pair,
            low=max(-1.0, min(pair.low, pair.difference - bound)),
            high=min(1.0, max(pair.high, pair.difference + bound)),
        )

    def differing_rows(self, pair: PairedDifference) -> int:
        return sum(1 for difference in self.row_differences(pair) if difference != 0)

    def row_differences(self, pair: PairedDifference) -> list[float]:
        other = {row.id: row.scores[self.metric] for row in self.evaluations[pair.b].rows}
        return [row.scores[self.metric] - other[row.id] for row in self.evaluations[pair.a].rows]

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

    def best_alternative(self, costs: Mapping[str, CandidateCost]) -> str | None:
        """The highest value; of equal ones the cheapest, then the first by name, so that the answer never varies."""

        def rank(name: str) -> tuple[float, float, str]:
            cost = costs[name].per_1000_requests if name in costs else math.inf
            return -self.value(name).value, cost, name

        return min(self.alternatives, key=rank, default=None)

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
        """Rows on which `better_by_min_gain` or `gain_below_min_gain` will fire."""
        z = z_value(self.confidence)
        z_less = z * self._stretch(pair, pairs)
        return rows_needed(
            pair.difference,
            self._difference_variance(pair),
            pair.n,
            power=self.power,
            yes_from=lambda error: max(self.min_gain, z * error),
            no_below=lambda error: self.min_gain - z_less * error,
            maybe_nothing=self.min_gain > 0,
        )

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
            maybe_nothing=False,
        )

    def _difference_variance(self, pair: PairedDifference) -> float:
        """Variance per row of the paired difference.

        A metric that is the mean of its rows' scores has it in the rows; for others (an F1 from counts of all rows) it
        follows from the interval, whose variance falls with 1/n. One more row that differs is always allowed for.
        """
        rows = self.row_differences(pair)
        floor = 1 / (pair.n + 1)
        if len(rows) > 1 and abs(sum(rows) / len(rows) - pair.difference) < 1e-6:
            return max(sample_variance(rows), floor)
        return max(pair.n * ((pair.high - pair.low) / (2 * z_value(self.confidence))) ** 2, floor)

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
        test = f", McNemar {wording.p_value(pair.p_value)}" if pair.p_value is not None else ""
        interval = wording.interval(pair.low, pair.high, self.confidence)
        return (
            f"{wording.points(pair.difference)} {wording.metric_name(self.metric)} over "
            f"{wording.candidate_name(pair.b)} ({interval}, n={pair.n}{test})"
        )


def reversed_pair(pair: PairedDifference) -> PairedDifference:
    return replace(pair, a=pair.b, b=pair.a, difference=-pair.difference, low=-pair.high, high=-pair.low)
