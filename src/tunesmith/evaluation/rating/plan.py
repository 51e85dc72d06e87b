"""Which pairs are rated, in which order, by whom, and which answer stands on the left.

Everything follows from the seed and the pairs' keys, so a session can be ended and taken up again, by the same people
or others, and nothing but the ratings has to be kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from tunesmith.evaluation.rating.pairs import Pair
from tunesmith.evaluation.rating.ratings import Rating, Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """Pairs to be rated, in their order.

    The first `overlap` of them are rated by everybody, which is what agreement is measured on, and first, so that it is
    known early. Each of the others is rated by one person.
    """

    pairs: tuple[Pair, ...]
    overlap: int
    seed: int

    def shared(self, place: int) -> bool:
        """Whether the pair at this place is for everybody."""
        return place < self.overlap

    def left(self, pair: Pair, rater: str) -> str:
        """The candidate that this rater sees on the left: a fair coin, the same each time."""
        first, second = sorted(pair.answers)
        return first if _draw(self.seed, "side", pair.key, rater) % 2 else second


def make_plan(pairs: Sequence[Pair], settings: Settings) -> Plan:
    """Pairs whose answers differ, in an order drawn by the seed. Pairs that are the same in all are rated once."""
    different = {pair.key: pair for pair in pairs if not pair.identical}
    ordered = sorted(different.values(), key=lambda pair: _draw(settings.seed, "order", pair.key))
    return Plan(tuple(ordered[: settings.rows]), settings.overlap, settings.seed)


def open_pairs(
    plan: Plan, ratings: Mapping[str, Mapping[str, Rating]], rater: str, claimed: Set[str] = frozenset()
) -> list[Pair]:
    """What this rater has still to rate, in order: without pairs that others rated, or are rating now (`claimed`)."""
    left = []
    for place, pair in enumerate(plan.pairs):
        by = ratings.get(pair.key, {})
        if rater not in by and (plan.shared(place) or not (by or pair.key in claimed)):
            left.append(pair)
    return left


def _draw(seed: int, *words: str) -> int:
    text = "\0".join((str(seed), *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
