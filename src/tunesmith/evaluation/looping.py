"""Answers in which a model goes round in circles until the token limit cuts it."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.evaluation.types import ScoredAnswer

_LEAST = 24
"""Shortest repeated tail, in characters: an answer may well end in "ha ha ha"."""
_TIMES = 3


def loops(text: str) -> bool:
    """Whether the second half of a text, or more, is one piece repeated three times or more.

    The tail of a repetition with the period p is a text t with t[i] = t[i - p]; the shortest period of the reversed
    second half comes from its failure function (Knuth, Morris, Pratt 1977), in linear time.
    """
    tail = text[len(text) // 2 :][::-1]
    if len(tail) < _LEAST:
        return False
    failure, border = [0] * len(tail), 0
    for i in range(1, len(tail)):
        while border and tail[i] != tail[border]:
            border = failure[border - 1]
        border += tail[i] == tail[border]
        failure[i] = border
    return (len(tail) - failure[-1]) * _TIMES <= len(tail)


def looped(rows: Sequence[ScoredAnswer]) -> float:
    """The share of rows whose answer was cut by the limit while it repeated itself."""
    return sum(not row.stopped and loops(row.answer) for row in rows) / len(rows) if rows else 0.0
