"""What generated answers to validation rows tell beside their score: the `answers` of a validation event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any


def answer_measures(parsed: Sequence[Any], expected: Sequence[Any], ended: Sequence[bool]) -> dict[str, float]:
    """Shares over the rows answered, each 0-1; `{}` without rows.

    rows: how many (a count). ended: answers that stopped by themselves. unreadable: those the task could not read.
    right: answers that are the expected one, whole.
    Where expected answers repeat (fewer kinds than half the rows): expected_top_share: rows whose expected answer is
    the most frequent one; top_share: answers that are it; rare_recall: right answers among the other rows.
    """
    rows = len(expected)
    if not rows:
        return {}
    measures = {
        "rows": float(rows),
        "ended": sum(ended) / rows,
        "unreadable": sum(answer is None for answer in parsed) / rows,
        "right": sum(answer == target for answer, target in zip(parsed, expected, strict=True)) / rows,
    }
    names = [str(target) for target in expected]
    kinds = Counter(names)
    rare = [i for i, name in enumerate(names) if name != (top := kinds.most_common(1)[0][0])]
    if 2 * len(kinds) < rows and rare:
        measures["expected_top_share"] = kinds[top] / rows
        measures["top_share"] = sum(answer is not None and str(answer) == top for answer in parsed) / rows
        measures["rare_recall"] = sum(parsed[i] == expected[i] for i in rare) / len(rare)
    return measures
