"""A rating session without its web: what a rater sees next, and what happens to a choice.

Nothing that leaves here names a candidate: sides are `left` and `right`, pairs are known by their hash.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.evaluation.rating import (
    BOTH_BAD,
    TIE,
    Pair,
    Plan,
    Rating,
    RatingLog,
    Ratings,
    open_pairs,
    rater_name,
)

_CLAIM_SECONDS = 600.0
"""A pair that is for one person stays theirs for so long after it was shown."""
_LONGEST = 86_400.0


@dataclass(frozen=True, slots=True)
class _Claim:
    rater: str
    until: float


class RatingSession:
    """Gives pairs to raters and keeps their choices; safe to be used by several threads.

    Raises `RecipeError` for requests that make no sense: an impossible name, an unknown pair or choice.
    """

    def __init__(
        self, plan: Plan, ratings: Ratings, log: RatingLog, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.plan = plan
        self._log, self._clock = log, clock
        self._lock = threading.Lock()
        self._pairs = {pair.key: pair for pair in plan.pairs}
        self._ratings = ratings.of(self._pairs)
        self._claims: dict[str, _Claim] = {}
        self._places = {pair.key: place for place, pair in enumerate(plan.pairs)}

    @property
    def given(self) -> int:
        """Ratings of the plan's pairs, of all raters."""
        with self._lock:
            return sum(map(len, self._ratings.values()))

    def next(self, name: str) -> dict[str, Any]:
        """The first pair this rater has still to rate, with progress; no pair where all is done."""
        rater = rater_name(name)
        with self._lock:
            return self._next(rater)

    def rate(self, name: str, key: str, choice: str, seconds: float) -> dict[str, Any]:
        """Keep a choice (`left`, `right`, `tie`, `both_bad`), durably, then give the next pair.

        A second choice of the same rater for a pair replaces the first.
        """
        rater = rater_name(name)
        pair = self._pair(key)
        left = self.plan.left(pair, rater)
        right = next(candidate for candidate in pair.answers if candidate != left)
        meant = {"left": left, "right": right, TIE: TIE, BOTH_BAD: BOTH_BAD}
        if choice not in meant:
            raise RecipeError("this is no choice", where="choice", expected=", ".join(meant))
        if not math.isfinite(seconds):
            raise RecipeError("this is no length of time", where="seconds", expected="a number")
        spent = round(min(max(seconds, 0.0), _LONGEST), 2)
        rating = Rating(rater, key, pair.id, meant[choice], left, spent)
        with self._lock:
            self._log.append(rating)
            self._ratings[key][rater] = rating
            self._claims.pop(key, None)
            return self._next(rater)

    def back(self, name: str, key: str | None) -> dict[str, Any]:
        """The pair this rater rated before the one shown now, with the choice made then; the first one stays."""
        rater = rater_name(name)
        with self._lock:
            rated = [pair for pair in self.plan.pairs if rater in self._ratings[pair.key]]
            now = self._places.get(key or "", len(self.plan.pairs))
            before = [pair for pair in rated if self._places[pair.key] < now]
            if not before:
                return self._shown(rater, self._pairs[key]) if key in self._pairs else self._next(rater)
            return self._shown(rater, before[-1])

    def _pair(self, key: str) -> Pair:
        if key not in self._pairs:
            raise RecipeError("there is no such pair", where="pair", fix="load the page again")
        return self._pairs[key]

    def _next(self, rater: str) -> dict[str, Any]:
        now = self._clock()
        self._claims = {key: claim for key, claim in self._claims.items() if claim.until > now}
        others = {key for key, claim in self._claims.items() if claim.rater != rater}
        waiting = open_pairs(self.plan, self._ratings, rater, others)
        if not waiting:
            return {"pair": None, "progress": self._progress(rater, 0)}
        pair = waiting[0]
        if not self.plan.shared(self._places[pair.key]):
            self._claims[pair.key] = _Claim(rater, now + _CLAIM_SECONDS)
        return self._shown(rater, pair, len(waiting))

    def _shown(self, rater: str, pair: Pair, waiting: int | None = None) -> dict[str, Any]:
        if waiting is None:
            others = {key for key, claim in self._claims.items() if claim.rater != rater}
            waiting = len(open_pairs(self.plan, self._ratings, rater, others))
        left = self.plan.left(pair, rater)
        sides = {candidate: "left" if candidate == left else "right" for candidate in pair.answers}
        given: Mapping[str, Rating] = self._ratings[pair.key]
        before = given[rater].choice if rater in given else None
        return {
            "pair": pair.key,
            "question": pair.question,
            "reference": pair.expected,
            # Left before right, always: in the candidates' order the keys would tell which is which.
            "left": pair.answers[left],
            "right": next(answer for candidate, answer in pair.answers.items() if candidate != left),
            "before": sides.get(before, before) if before is not None else None,
            "progress": self._progress(rater, waiting),
        }

    def _progress(self, rater: str, waiting: int) -> dict[str, int]:
        rated = sum(rater in by for by in self._ratings.values())
        return {"rated": rated, "total": rated + waiting}
