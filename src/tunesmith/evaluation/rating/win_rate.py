"""How often one candidate's answer is preferred to another's, with an interval that knows of ties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.errors import DataError
from tunesmith.evaluation.statistics import mcnemar_exact, newcombe_paired

Outcome = Literal["a", "b", "tie"]


@dataclass(frozen=True, slots=True)
class WinRate:
    """Candidate `a` against candidate `b` on the same rows, one outcome per row.

    value: `(wins + ties / 2) / (wins + ties + losses)`, with its interval `low` to `high`.
    p_value: exact and two-sided, of wins against losses (McNemar).
    unjudged: rows without an outcome; they are in none of these numbers. `lowest` and `highest` are what `value` would
    be if all of them were losses, or wins.
    """

    wins: int
    ties: int
    losses: int
    unjudged: int
    value: float
    low: float
    high: float
    p_value: float
    lowest: float
    highest: float
    confidence: float

    @property
    def n(self) -> int:
        """Rows with an outcome."""
        return self.wins + self.ties + self.losses

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, `n` included."""
        return {**asdict(self), "n": self.n}


def win_rate(outcomes: Iterable[Outcome | None], *, confidence: float = 0.95) -> WinRate:
    """Count outcomes (None: unjudged).

    The win rate is `1/2 + (P(win) - P(loss)) / 2`, so its interval follows from that of the difference of two paired
    proportions: Newcombe's method 10 on (both 0, wins, losses, ties), halved. Without ties that is exactly the Wilson
    interval of wins; with ties it is narrower, as a tie leaves less to chance than a win or a loss.

    Raises `DataError` where nothing was judged.
    """
    counted = Counter(outcomes)
    wins, ties, losses, unjudged = counted["a"], counted["tie"], counted["b"], counted[None]
    n = wins + ties + losses
    if not n:
        raise DataError("no pair of answers was judged", expected="at least one win, tie or loss")
    low, high = newcombe_paired(0, wins, losses, ties, confidence)
    points, all_rows = wins + ties / 2, n + unjudged
    return WinRate(
        wins=wins,
        ties=ties,
        losses=losses,
        unjudged=unjudged,
        value=points / n,
        low=0.5 + low / 2,
        high=0.5 + high / 2,
        p_value=mcnemar_exact(wins, losses),
        lowest=points / all_rows,
        highest=(points + unjudged) / all_rows,
        confidence=confidence,
    )
