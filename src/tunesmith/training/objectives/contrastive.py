"""Contrastive loss on pairs of texts (Hadsell, Chopra & LeCun 2006, doi:10.1109/CVPR.2006.100).

With `d` the distance of the two texts' pooled hidden states and label `y`, 0 for pairs that belong together and 1 for
those that do not: `(1 - y) d² + y max(margin - d, 0)²`. The paper's common factor of one half is left out, as is usual.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from tunesmith.models.forward import LanguageModel
from tunesmith.training.batching import Batch
from tunesmith.training.objectives.inputs import pair_states
from tunesmith.training.objectives.types import LossSum, Objective

Distance = Literal["euclidean", "cosine"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)


def distances(first: Tensor, second: Tensor, distance: Distance) -> Tensor:
    """Distance [G] of rows of [G, H] and [G, H]; the cosine distance is `1 - cos`, from 0 to 2."""
    if distance == "cosine":
        return 1 - F.cosine_similarity(first, second)
    return F.pairwise_distance(first, second)


def contrastive(margin: float = 2.0, distance: Distance = "euclidean") -> Objective:
    """The objective for these settings; its weight is the number of pairs."""

    def objective(model: LanguageModel, batch: Batch) -> LossSum:
        first, second, labels = pair_states(model, batch)
        d = distances(first, second, distance)
        loss = (1 - labels) * d.square() + labels * (margin - d).clamp_min(0).square()
        return LossSum(loss.sum(), float(len(labels)), {"distance": d.detach().sum()})

    return objective
