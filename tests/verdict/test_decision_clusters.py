"""Rows that hang together: few groups show little, however many rows they have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.verdict.cases import cost, decided, evaluation, pair, row
from tunesmith.evaluation.measuring import Measuring
from tunesmith.evaluation.types import Evaluation
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.verdict.types import Verdict, Volume

N = 300
COSTS = {"tuned": cost("tuned", 0.1, 240.0), "remote_big": cost("remote_big", 20.1)}


def differing_in(rows: int) -> list[Evaluation]:
    """Two candidates of 300 rows that differ in the first `rows` of them."""
    tuned = evaluation("tuned", (0.9, 0.86, 0.93), N)
    flipped = tuple(row(i, 1.0 - r.scores["accuracy"] if i < rows else r.scores["accuracy"])
                    for i, r in enumerate(tuned.rows))  # fmt: skip
    return [tuned, replace(evaluation("remote_big", (0.9, 0.86, 0.93), N), rows=flipped)]


def verdict(rows: int, clusters: int | None, differing: int | None) -> Verdict:
    measured = replace(
        pair("remote_big", (0.0033, -0.009, 0.016), N, p_value=1.0), clusters=clusters, differing_clusters=differing
    )
    return decided(differing_in(rows), [measured], margin=0.03, volume=Volume(10_000, 12), costs=COSTS)


@pytest.mark.parametrize(("rows", "differing"), [(0, 0), (1, 1), (40, 1), (1, None), (40, None)])
def test_three_groups_never_show_that_one_is_as_good(rows: int, differing: int | None) -> None:
    found = verdict(rows, 3, differing)
    assert found.decision == "cannot_tell"
    assert found.difference is not None and found.difference["low"] < -0.5
    assert any("widened to what 3 groups of rows can show" in caveat for caveat in found.caveats)


def test_rows_that_differ_in_one_of_many_groups_count_once() -> None:
    # 40 rows differ, all in one group of 60: 1 - 0.025^(1/60) = 6 points are possible unseen, over the margin of 3.
    assert verdict(40, 60, 1).decision == "cannot_tell"
    assert verdict(40, 60, 20).rule == "as_good_and_cheaper"
    assert verdict(40, None, None).rule == "as_good_and_cheaper"


def test_groups_that_differ_are_counted_when_measured() -> None:
    metric = MeanMetric("accuracy", binary=True, score=lambda a, b: float(a == b))
    a = metric.statistics([1, 1, 0, 1, 1, 1], [1] * 6)
    b = metric.statistics([0, 0, 0, 1, 1, 1], [1] * 6)
    grouped = Measuring(200, 0.95, 0, tuple("xxyyzz"))
    assert [d.differing_clusters for d in grouped.differences(metric, ("a", "b"), (a, b))] == [1]
    assert [d.differing_clusters for d in Measuring(200, 0.95, 0).differences(metric, ("a", "b"), (a, b))] == [None]
