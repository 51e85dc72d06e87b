"""How well distances of pooled hidden states agree with the labels of pairs; pairs have no generated answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tunesmith.models.forward import LanguageModel
from tunesmith.text.types import Group
from tunesmith.training.batching import micro_batches
from tunesmith.training.objectives.contrastive import Distance, distances
from tunesmith.training.objectives.inputs import pair_states

Values = npt.NDArray[np.float64]


def pair_metrics(
    model: LanguageModel, groups: Sequence[Group], *, distance: Distance = "euclidean", token_budget: int = 4096
) -> dict[str, float]:
    """Metrics of labelled pairs, without gradients; the model is in evaluation mode afterwards.

    pair_accuracy: share of pairs on the right side of the best threshold on the distance, whichever side is which
    label (only where labels are 0 and 1); pair_threshold: that threshold. Both are chosen on these very pairs, so on
    few pairs the accuracy flatters. spearman: rank correlation of distance and label; 0 where either is constant.
    """
    lengths, labels = pair_distances(model, groups, distance=distance, token_budget=token_budget)
    metrics = {"spearman": spearman(lengths, labels)}
    if len(labels) and np.isin(labels, (0.0, 1.0)).all():
        metrics["pair_accuracy"], metrics["pair_threshold"] = best_threshold(lengths, labels)
    return metrics


@torch.no_grad()
def pair_distances(
    model: LanguageModel, groups: Sequence[Group], *, distance: Distance = "euclidean", token_budget: int = 4096
) -> tuple[Values, Values]:
    """Distance and label of every pair, both [G], in one order (that of the streams, not of `groups`)."""
    model.model.eval()
    found: list[tuple[Values, Values]] = []
    with model.packed():
        for batch in micro_batches(groups, token_budget, model.device):
            first, second, labels = pair_states(model, batch)
            d = distances(first, second, distance)
            found.append((d.double().cpu().numpy(), labels.double().cpu().numpy()))
    if not found:
        return np.zeros(0), np.zeros(0)
    return np.concatenate([d for d, _ in found]), np.concatenate([y for _, y in found])


def best_threshold(lengths: Values, labels: Values) -> tuple[float, float]:
    """The largest accuracy of `distance > threshold` as a sign of label 1, or of label 0; and the threshold.

    `lengths` and `labels` (0 or 1) [G], G at least 1. A threshold lies between two distances that differ.
    """
    order = np.argsort(lengths, kind="stable")
    d, y = lengths[order], labels[order]
    zeros_below = np.r_[0, np.cumsum(1 - y)]
    ones_above = y.sum() - np.r_[0, np.cumsum(y)]
    right = zeros_below + ones_above  # with k pairs below the threshold
    possible = np.r_[True, d[1:] > d[:-1], True]
    better = np.where(possible, np.maximum(right, len(y) - right), -1.0)
    k = int(better.argmax())
    edges = np.r_[d[0] - 1e-6, d, d[-1] + 1e-6]
    return float(better[k] / len(y)), float((edges[k] + edges[k + 1]) / 2)


def spearman(lengths: Values, labels: Values) -> float:
    """Pearson correlation of ranks (ties share their mean rank)."""
    if len(lengths) < 2 or (lengths == lengths[0]).all() or (labels == labels[0]).all():
        return 0.0
    from scipy.stats import rankdata  # half a second that only pairs need

    return float(np.corrcoef(rankdata(lengths), rankdata(labels))[0, 1])
