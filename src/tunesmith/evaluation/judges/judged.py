"""From a judge's two replies about a pair to one outcome, and from all outcomes to what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tunesmith.evaluation.judges.questions import read_choice, read_scores
from tunesmith.evaluation.judges.rubric import Rubric
from tunesmith.evaluation.rating.pairs import Pair
from tunesmith.evaluation.rating.win_rate import Outcome
from tunesmith.evaluation.statistics import bootstrap, value_interval, wilson

Failure = Literal["unreadable", "refused", "unanswered", "not_asked"]
"""Prose instead of what was asked for; a question the judge will not answer; no answer after all attempts; and what
was not reached, as the budget was spent or the endpoint was gone."""


@dataclass(frozen=True, slots=True)
class Said:
    """A judge's reply to one question: its text, or why there is none (`failure`, and `detail` in words)."""

    text: str | None
    model: str = ""
    failure: Failure | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One pair as a judge sees it.

    outcome: None where it could not be had; `failure` says why. consistent: whether both orders gave the same; None for
    a rubric, and where one is missing. first: how many of the two replies chose the answer that stood first, of
    those that chose one. scores: by candidate, of every criterion and in all ("score", 0-1). prose: the replies that
    could not be read, by their part.
    """

    pair: Pair
    outcome: Outcome | None
    failure: Failure | None
    replies: Mapping[str, Said]
    consistent: bool | None = None
    first: tuple[int, int] = (0, 0)
    scores: Mapping[str, Mapping[str, float]] | None = None
    prose: tuple[str, ...] = ()


def judge_by_choice(pair: Pair, replies: Mapping[str, Said]) -> JudgedPair:
    """Both orders (`ab`, `ba`) together: what both say counts, and where they differ it is a tie."""
    chosen = {part: read_choice(said.text) if said.text is not None else None for part, said in replies.items()}
    decided = [choice for choice in chosen.values() if choice in ("first", "second")]
    first = (sum(choice == "first" for choice in decided), len(decided))
    if None in chosen.values():
        return JudgedPair(pair, None, _failure(replies), replies, first=first, prose=_prose(replies, chosen))
    as_ab: dict[str | None, Outcome] = {"first": "a", "second": "b", "tie": "tie"}
    as_ba: dict[str | None, Outcome] = {"first": "b", "second": "a", "tie": "tie"}
    one, other = as_ab[chosen["ab"]], as_ba[chosen["ba"]]
    return JudgedPair(pair, one if one == other else "tie", None, replies, one == other, first)


def judge_by_scores(pair: Pair, a: str, b: str, replies: Mapping[str, Said], rubric: Rubric) -> JudgedPair:
    """Each answer's score by the rubric; differences up to `tie_within` are ties."""
    read = {name: read_scores(said.text, rubric) if said.text is not None else None for name, said in replies.items()}
    of_a, of_b = read[a], read[b]
    if of_a is None or of_b is None:
        return JudgedPair(pair, None, _failure(replies), replies, prose=_prose(replies, read))
    scores = {name: {**of, "score": rubric.score(of)} for name, of in ((a, of_a), (b, of_b))}
    difference = scores[a]["score"] - scores[b]["score"]
    outcome: Outcome = "tie" if abs(difference) <= rubric.tie_within + 1e-12 else "a" if difference > 0 else "b"
    return JudgedPair(pair, outcome, None, replies, scores=scores)


def _failure(replies: Mapping[str, Said]) -> Failure:
    """Why there is no outcome: what kept a reply from coming, else that one could not be read."""
    return next((said.failure for said in replies.values() if said.failure), "unreadable")


def _prose(replies: Mapping[str, Said], read: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(part for part, said in replies.items() if said.text is not None and read[part] is None)


def consistency(judged: Sequence[JudgedPair], confidence: float) -> dict[str, Any] | None:
    """How often both orders agree, and how often the first place was chosen (a half, where place counts for nothing);
    None for a rubric."""
    both = [one.consistent for one in judged if one.consistent is not None]
    if not both:
        return None
    chosen, of = (sum(one.first[side] for one in judged) for side in (0, 1))
    low, high = wilson(chosen, of, confidence) if of else (0.0, 1.0)
    return {
        "same_in_both_orders": sum(both),
        "of": len(both),
        "first_chosen": {"chosen": chosen, "of": of, "low": low, "high": high},
    }


def by_criterion(
    judged: Sequence[JudgedPair], a: str, b: str, rubric: Rubric, *, confidence: float, seed: int
) -> dict[str, Any]:
    """Per criterion, and for the score in all: both means, and their paired difference with a bootstrap interval, each
    taken to 0-1 from its own scale."""
    scored = [one.scores for one in judged if one.scores is not None]
    if not scored:
        return {}
    spans = {c.name: (c.lowest, c.highest - c.lowest) for c in rubric.criteria} | {"score": (0, 1)}
    found = {}
    for name, (lowest, span) in spans.items():
        values = {who: np.array([(of[who][name] - lowest) / span for of in scored]) for who in (a, b)}
        difference = values[a] - values[b]
        draws = bootstrap(
            [np.column_stack([difference, np.ones(len(difference))])],
            lambda sums: sums[..., 0] / sums[..., 1],
            resamples=2_000,
            seed=seed,
        )[0]
        # As a share of the way from -1 to 1, so that draws that are all equal take the score interval.
        low, high = value_interval((float(difference.mean()) + 1) / 2, len(difference), (draws + 1) / 2, confidence)
        found[name] = {
            a: float(values[a].mean()),
            b: float(values[b].mean()),
            "difference": float(difference.mean()),
            "low": 2 * low - 1,
            "high": 2 * high - 1,
        }
    return found
