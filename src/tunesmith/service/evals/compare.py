"""Two runs of one eval compared on the rows that both have answered.

Rows are paired by what stands in them, not by their place: a run on some of the rows, or on a file in another order, is
still compared row with row. A row that occurs several times is paired in the order of its copies.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tunesmith.service.context import Service
from tunesmith.service.errors import invalid
from tunesmith.service.evals.summary import CONFIDENCE, RESAMPLES, SEED, mean, scores_of
from tunesmith.service.store.nouns import Eval, EvalRun, OutputItem

Pair = tuple[OutputItem, OutputItem]


def compare_runs(service: Service, run: EvalRun, other: EvalRun) -> dict[str, Any]:
    """Differences `run - other` of every criterion. Raises `ApiError` 400 where there is nothing to compare."""
    if run.id == other.id:
        raise invalid("A run cannot be compared with itself.", param="other_id")
    for one in (run, other):
        if one.status in ("queued", "in_progress"):
            raise invalid(f"The run {one.id} has not ended: its status is '{one.status}'.", param="run_id")
    found = service.store.get(Eval, run.eval_id)
    criteria = found.testing_criteria if found is not None else ()
    ours, theirs = (service.store.all(OutputItem, {"run_id": one.id}) for one in (run, other))
    pairs = paired(ours, theirs)
    if not pairs:
        raise invalid("The two runs have no row in common, so there is nothing to compare.", param="other_id")
    return {
        "object": "eval.run.comparison",
        "eval_id": run.eval_id,
        "run_id": run.id,
        "other_run_id": other.id,
        "confidence": CONFIDENCE,
        "rows": {"paired": len(pairs), "only_run": len(ours) - len(pairs), "only_other": len(theirs) - len(pairs)},
        "criteria": [_criterion(str(one["id"]), pairs) for one in criteria],
    }


def paired(ours: Sequence[OutputItem], theirs: Sequence[OutputItem]) -> list[Pair]:
    """Items of the same row."""
    waiting: dict[str, list[OutputItem]] = defaultdict(list)
    for item in reversed(theirs):
        waiting[_key(item)].append(item)
    return [(item, waiting[_key(item)].pop()) for item in ours if waiting[_key(item)]]


def _key(item: OutputItem) -> str:
    return json.dumps(item.datasource_item, sort_keys=True)


def _criterion(criterion: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Passes by Newcombe's paired interval and McNemar's exact test, scores by the paired bootstrap and a swap test."""
    from tunesmith.evaluation.statistics import mcnemar_exact, newcombe_paired

    ours = scores_of(criterion, [pair[0] for pair in pairs])
    theirs = scores_of(criterion, [pair[1] for pair in pairs])
    graded = [(ours[a.place], theirs[b.place]) for a, b in pairs if a.place in ours and b.place in theirs]
    shown: dict[str, Any] = {"testing_criteria": criterion, "rows": len(graded)}
    if not graded:
        return {**shown, "pass_rate": None, "mean_score": None}
    n = len(graded)
    both = sum(a[1] and b[1] for a, b in graded)
    only_run = sum(a[1] and not b[1] for a, b in graded)
    only_other = sum(b[1] and not a[1] for a, b in graded)
    low, high = newcombe_paired(both, only_run, only_other, n - both - only_run - only_other, CONFIDENCE)
    shown["pass_rate"] = {
        "run": (both + only_run) / n,
        "other": (both + only_other) / n,
        "difference": (only_run - only_other) / n,
        "interval": [low, high],
        "p_value": mcnemar_exact(only_run, only_other),
        "both_passed": both,
        "only_run_passed": only_run,
        "only_other_passed": only_other,
        "neither_passed": n - both - only_run - only_other,
    }
    shown["mean_score"] = _scores([a[0] for a, _ in graded], [b[0] for _, b in graded])
    return shown


def _scores(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    import numpy as np

    from tunesmith.evaluation.statistics import bca_interval, bootstrap, jackknife, swap_test

    columns = [np.stack([np.array(one, dtype=np.float64), np.ones(len(one))], axis=1) for one in (ours, theirs)]
    differences = np.stack([columns[0][:, 0] - columns[1][:, 0], np.ones(len(ours))], axis=1)
    value = float(differences[:, 0].mean())
    shown: dict[str, Any] = {
        "run": float(columns[0][:, 0].mean()),
        "other": float(columns[1][:, 0].mean()),
        "difference": value,
        "interval": None,
        "p_value": swap_test(columns, [(0, 1)], mean, resamples=RESAMPLES, seed=SEED)[0],
    }
    # Where all rows differ alike (or there is one), the rows show no spread to make an interval of.
    if len(ours) > 1 and np.ptp(differences[:, 0]) > 0:
        draws = bootstrap([differences], mean, resamples=RESAMPLES, seed=SEED)[0]
        low, high = bca_interval(draws, value, jackknife(differences, mean), CONFIDENCE)
        shown["interval"] = [min(low, value), max(high, value)]
    return shown
