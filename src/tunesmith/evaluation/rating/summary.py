"""What the ratings of a run say: who agrees with whom, and which candidate people prefer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.evaluation.rating.agreement import Agreement, cohen_kappa, fleiss_kappa, krippendorff_alpha
from tunesmith.evaluation.rating.pairs import Pair
from tunesmith.evaluation.rating.ratings import BOTH_BAD, TIE, Rating, Ratings, consensus
from tunesmith.evaluation.rating.win_rate import Outcome, WinRate, win_rate
from tunesmith.evaluation.statistics import wilson

FEWEST_SHARED = 20
"""With fewer pairs rated by several people, good raters can hardly be told from ones that choose by chance."""


@dataclass(frozen=True, slots=True)
class RatingSummary:
    """Ratings of the answers of candidate `a` against those of `b`.

    pairs: rows of the run. identical: of them, rows on which both say the same; nobody is asked about those, and they
    are in none of the numbers below. rated: pairs with a rating. win_rate: of what most raters of a pair said; None
    where nothing was rated. choices: ratings by candidate name, `tie` and `both_bad`. agreement: of all pairs with
    several ratings (Cohen's kappa for two raters, Krippendorff's alpha for more); everybody: Fleiss' kappa on the pairs
    that all of three or more raters rated. left: ratings for the left answer, of those for one of the two, with the
    interval of that share; far from a half, people chose by place. stale: ratings of answers that have changed since,
    which count for nothing.
    """

    a: str
    b: str
    pairs: int
    identical: int
    rated: int
    raters: Mapping[str, int]
    choices: Mapping[str, int]
    win_rate: WinRate | None
    agreement: Agreement | None
    everybody: Agreement | None
    left: tuple[int, int, float, float] | None
    stale: int

    @property
    def counts(self) -> bool:
        """Whether a decision may rest on it: something was rated, and raters are not known to agree by chance alone."""
        return self.win_rate is not None and not self._by_chance

    @property
    def why(self) -> str:
        """What it rests on, or why it does not count."""
        if self.win_rate is None:
            return "nothing was rated"
        if self._by_chance:
            return "the raters agree no better than chance"
        if self.agreement is None:
            return "no pair was rated by two people, so nothing says whether others would agree"
        if self.agreement.value is None:
            return f"{len(self.raters)} raters, who all said the same of every pair they share"
        if self.agreement.n < FEWEST_SHARED:
            return f"{len(self.raters)} raters share {self.agreement.n} pairs, too few to tell whether they agree"
        return f"{len(self.raters)} raters, who agree better than chance"

    @property
    def _by_chance(self) -> bool:
        found = self.agreement
        return found is not None and found.n >= FEWEST_SHARED and found.low is not None and found.low <= 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": "people",
            "counts": self.counts,
            "why": self.why,
            "a": self.a,
            "b": self.b,
            "pairs": self.pairs,
            "identical": self.identical,
            "rated": self.rated,
            "raters": dict(self.raters),
            "choices": dict(self.choices),
            "win_rate": self.win_rate.to_dict() if self.win_rate else None,
            "agreement": self.agreement.to_dict() if self.agreement else None,
            "everybody": self.everybody.to_dict() if self.everybody else None,
            "left": dict(zip(("chosen", "of", "low", "high"), self.left, strict=True)) if self.left else None,
            "stale": self.stale,
        }


def human_labels(pairs: Sequence[Pair], ratings: Ratings, a: str, b: str) -> dict[str, Outcome]:
    """By pair key, what most raters said of it; both bad is a tie."""
    names: dict[str, Outcome] = {"a": "a", "b": "b", "tie": "tie"}
    by_pair = ratings.of(pair.key for pair in pairs)
    return {key: names[consensus(list(by.values()), a, b)] for key, by in by_pair.items() if by}


def summarise(pairs: Sequence[Pair], ratings: Ratings, a: str, b: str, *, confidence: float = 0.95) -> RatingSummary:
    """The summary of the ratings of these pairs; ratings of other candidates are passed over."""
    by_pair = {key: by for key, by in ratings.of(pair.key for pair in pairs).items() if by}
    labels = human_labels(pairs, ratings, a, b)
    given = [rating for by in by_pair.values() for rating in by.values()]
    sided = [rating for rating in given if rating.choice in (a, b)]
    chosen_left = sum(rating.choice == rating.left for rating in sided)
    return RatingSummary(
        a=a,
        b=b,
        pairs=len(pairs),
        identical=sum(pair.identical for pair in pairs),
        rated=len(by_pair),
        raters=dict(sorted(Counter(rating.rater for rating in given).items())),
        choices={name: sum(rating.choice == name for rating in given) for name in (a, b, TIE, BOTH_BAD)},
        win_rate=win_rate(labels.values(), confidence=confidence) if labels else None,
        agreement=_agreement(list(by_pair.values()), confidence),
        everybody=_everybody(list(by_pair.values()), confidence),
        left=(chosen_left, len(sided), *wilson(chosen_left, len(sided), confidence)) if sided else None,
        stale=_stale(pairs, ratings, a, b),
    )


def _agreement(rated: Sequence[Mapping[str, Rating]], confidence: float) -> Agreement | None:
    shared = [by for by in rated if len(by) >= 2]
    if not shared:
        return None
    raters = sorted({rater for by in shared for rater in by})
    if len(raters) == 2:
        one, other = raters
        return cohen_kappa(
            [by[one].choice for by in shared], [by[other].choice for by in shared], confidence=confidence
        )
    return krippendorff_alpha(
        [{rater: rating.choice for rater, rating in by.items()} for by in shared], confidence=confidence
    )


def _everybody(rated: Sequence[Mapping[str, Rating]], confidence: float) -> Agreement | None:
    raters = {rater for by in rated for rater in by}
    full = [by for by in rated if len(by) == len(raters)]
    if len(raters) < 3 or not full:
        return None
    labels = sorted({rating.choice for by in full for rating in by.values()})
    counts = np.array([[sum(r.choice == label for r in by.values()) for label in labels] for by in full], dtype=float)
    return fleiss_kappa(counts, confidence=confidence)


def _stale(pairs: Sequence[Pair], ratings: Ratings, a: str, b: str) -> int:
    """Ratings of rows of this run, between these candidates, whose answers are others now."""
    keys, rows = {pair.key for pair in pairs}, {pair.id for pair in pairs}
    return sum(
        rating.pair not in keys and rating.row in rows and rating.left in (a, b)
        and rating.choice in (a, b, TIE, BOTH_BAD)
        for rating in ratings.latest.values()
    )  # fmt: skip
