"""Do words tell two groups of texts apart? A held-out naive Bayes, as a cheap test of what the data can teach.

Two questions use it. Do validation rows look like training rows (a classifier two-sample test: Lopez-Paz and Oquab
2017, arXiv 1610.06545)? And does the wording of a prompt say anything about its answer? A multinomial naive Bayes on
token ids needs one pass, no tuning, and is at chance where there is nothing to find.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from tunesmith.training.diagnosis.types import Separation

_Item = TypeVar("_Item")
_FOLDS = 5
_MOST_TEXTS = 1000
"""More texts of a group add nothing to a question answered with three standard errors."""


def separation(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], seed: int = 0) -> Separation | None:
    """How well tokens tell texts of two groups apart: area under the ROC curve, held out; chance is 0.5.

    The standard error is that of Hanley and McNeil (1982). None with fewer than ten texts in a group.
    """
    first, second = _drawn(first, seed), _drawn(second, seed)
    if min(len(first), len(second)) < 2 * _FOLDS:
        return None
    labels = np.repeat([0, 1], [len(first), len(second)])
    scores = _held_out(_counts([*first, *second]), labels, 2, seed)
    # The groups' sizes say nothing here, and the folds' priors would leak them: only the words count.
    difference = scores[:, 1] - scores[:, 0]
    auc = _auc(difference[labels == 1], difference[labels == 0])
    return Separation(auc, _auc_error(auc, len(second), len(first)), 0.5)


def predictability(texts: Sequence[Sequence[int]], answers: Sequence[str], seed: int = 0) -> Separation | None:
    """How often tokens of a text give its answer, every answer counting alike (mean recall), held out.

    Answers that occur fewer than five times are left out; None where fewer than two answers or 40 texts remain. Chance
    is one over the number of answers.
    """
    names, index, sizes = np.unique(np.asarray(answers), return_inverse=True, return_counts=True)
    kept = _drawn(np.flatnonzero(sizes[index] >= _FOLDS).tolist(), seed)
    if len(kept) < 40 or len(names) < 2:
        return None
    labels = np.unique(index[kept], return_inverse=True)[1]
    count = int(labels.max()) + 1
    if count < 2:
        return None
    right = _held_out(_counts([texts[i] for i in kept]), labels, count, seed).argmax(axis=1) == labels
    sizes = np.bincount(labels, minlength=count)
    recalls = np.bincount(labels, right, count) / sizes
    # Of a mean of proportions: each no surer than its size allows; a half more hit and miss keeps it above zero.
    spread = (recalls * sizes + 0.5) / (sizes + 1)
    error = math.sqrt(float((spread * (1 - spread) / sizes).sum())) / count
    return Separation(float(recalls.mean()), error, 1 / count)


def _counts(texts: Sequence[Sequence[int]]) -> csr_matrix:
    """Whether each token occurs in each text [texts, tokens]; tokens of one text only say nothing of others."""
    tokens, rows = [], []
    for row, text in enumerate(texts):
        present = set(text)
        tokens += list(present)
        rows += [row] * len(present)
    known, columns = np.unique(np.asarray(tokens, dtype=np.int64), return_inverse=True)
    table = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(known)))
    return table[:, np.asarray(table.sum(axis=0)).ravel() > 1]


def _held_out(table: csr_matrix, labels: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.float64]:
    """Log-likelihood of each text under each label [texts, labels], by the other folds' words, without priors."""
    folds = np.empty(len(labels), np.int64)
    draw = np.random.default_rng(seed)
    for label in range(count):  # every label in its share in every fold
        rows = draw.permutation(np.flatnonzero(labels == label))
        folds[rows] = np.arange(len(rows)) % _FOLDS
    scores = np.zeros((len(labels), count))
    for fold in range(_FOLDS):
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        member = csr_matrix((np.ones(len(rest)), (labels[rest], np.arange(len(rest)))), shape=(count, len(rest)))
        words = (member @ table[rest]).toarray() + 0.5
        scores[held] = table[held] @ np.log(words / words.sum(axis=1, keepdims=True)).T
    return scores


def _auc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """Share of pairs in which the positive one scores higher; ties count half."""
    pairs = positive[:, None] - negative[None, :]
    return float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())


def _auc_error(auc: float, positive: int, negative: int) -> float:
    """Hanley and McNeil's standard error, never less than at 0.95: at 1 the formula claims to be certain."""
    auc = min(max(auc, 1 - 0.95), 0.95)
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (q1 - auc * auc) + (negative - 1) * (q2 - auc * auc)
    return math.sqrt(variance / (positive * negative))


def _drawn(items: Sequence[_Item], seed: int) -> list[_Item]:
    """At most so many of the items, by seed."""
    if len(items) <= _MOST_TEXTS:
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), _MOST_TEXTS, replace=False)
    return [items[i] for i in sorted(chosen.tolist())]
