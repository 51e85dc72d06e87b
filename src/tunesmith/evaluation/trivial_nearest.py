"""Nearest neighbours: the answers of the k training rows whose inputs are most alike, put together.

Likeness is the cosine of TF-IDF of words 1-2 and characters 3-5; k is chosen on validation rows by the task's first
metric, ties to the smaller. Neighbours weigh as much as they are alike. A row that is like no training row at all gets
what most rows have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunesmith.data.types import Example
from tunesmith.evaluation.trivial_classification import text_features
from tunesmith.evaluation.trivial_labels import written
from tunesmith.evaluation.trivial_rules import Learn, Learned
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.metrics import quick_score
from tunesmith.tasks.multi_label import MultiLabel
from tunesmith.tasks.ordinal import Ordinal
from tunesmith.tasks.regression import Regression
from tunesmith.tasks.types import FloatArray

Combine = Callable[[Sequence[Any], FloatArray], str]
"""(answers of the neighbours, the nearest first; their weights, above 0) -> the answer."""

KS = (1, 3, 5, 10, 20)
"""Numbers of neighbours tried on validation rows."""
DEFAULT_K = 5
"""Taken, and said in the notes, where there is no validation row to choose on."""
_PAIRS = 4_000_000
"""Rows times training rows that are compared at once, about: 32 MB."""


def nearest_answers(
    task: Classification | MultiLabel | Regression,
) -> Learn:
    """The label of most weight, the label in the middle where labels have an order, each label of half of the weight,
    or the mean number.
    """
    combine = _combination(task)

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        texts = [example.question for example in train]
        features = text_features(texts)
        known = features.transform(texts)
        answers = [task.target(example) for example in train]
        # To a row that is like none, all are alike.
        usual = combine(answers, np.ones(len(answers)))
        most = min(max(KS), len(train))

        def found_for(examples: Sequence[Example]) -> list[tuple[list[Any], FloatArray]]:
            """The answers of the `most` nearest rows with their likeness, by row."""
            asked = features.transform([example.question for example in examples])
            block = max(1, _PAIRS // len(train))
            return [pair for i in range(0, len(examples), block) for pair in nearest(asked[i : i + block])]

        def nearest(asked: Any) -> list[tuple[list[Any], FloatArray]]:
            likeness = np.asarray((asked @ known.T).todense(), dtype=np.float64)
            order = np.argsort(-likeness, axis=1, kind="stable")[:, :most]
            return [
                ([answers[place] for place in places], row[places])
                for row, places in zip(likeness, order.tolist(), strict=True)
            ]

        def said(neighbours: Sequence[tuple[list[Any], FloatArray]], k: int) -> list[str]:
            answered = []
            for near, likeness in neighbours:
                alike = int((likeness[:k] > 0).sum())
                answered.append(combine(near[:alike], likeness[:alike]) if alike else usual)
            return answered

        if not validation:
            return (lambda rows: said(found_for(rows), DEFAULT_K)), {"k": DEFAULT_K, "k_chosen_on": None}
        metric = next(iter(task.metrics))
        neighbours = found_for(validation)
        scores = {k: quick_score(task, said(neighbours, k), validation)[metric] for k in KS if k <= most or k == 1}
        best = min(scores, key=lambda k: (-scores[k], k))
        return (lambda rows: said(found_for(rows), best)), {
            "k": best,
            "k_chosen_on": {str(k): score for k, score in scores.items()},
        }

    return learn


def _combination(task: Classification | MultiLabel | Regression) -> Combine:
    match task:
        case Ordinal():
            rank = {label: place for place, label in enumerate(task.labels)}
            return lambda labels, weights: task.labels[_median([rank[label] for label in labels], weights)]
        case Classification():
            return _heaviest
        case MultiLabel():
            return lambda sets, weights: written(task, _shared(task, sets, weights))
        case Regression():
            return lambda numbers, weights: f"{np.average(numbers, weights=weights):.6g}"


def _heaviest(labels: Sequence[Any], weights: FloatArray) -> str:
    """Of labels with equal weight the one whose neighbour is nearer."""
    sums: dict[str, float] = defaultdict(float)
    for label, weight in zip(labels, weights.tolist(), strict=True):
        sums[label] += weight
    return max(sums, key=lambda label: sums[label])


def _median(ranks: Sequence[int], weights: FloatArray) -> int:
    """The weighted median, of two the lower."""
    order = np.argsort(ranks, kind="stable")
    reached = weights[order].cumsum()
    return int(ranks[order[int(np.searchsorted(reached, reached[-1] / 2 - 1e-12))]])


def _shared(task: MultiLabel, sets: Sequence[Sequence[str]], weights: FloatArray) -> list[str]:
    """The labels that neighbours of at least half of the weight have."""
    half = float(weights.sum()) / 2
    return [
        label
        for label in task.labels
        if sum(weight for one, weight in zip(sets, weights.tolist(), strict=True) if label in one) >= half
    ]
