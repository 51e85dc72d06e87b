"""What is minimised. An objective is `(model, batch) -> loss sum`; the loop divides by the step's summed weights.

`cross_entropy` serves both supervised fine-tuning (weights on answers) and continued pretraining (weights on all
tokens): the difference lies in the samples' weights, not here.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tunesmith.models.forward import LanguageModel
from tunesmith.training.batching import Batch

Objective = Callable[[LanguageModel, Batch], Tensor]


def cross_entropy(model: LanguageModel, batch: Batch) -> Tensor:
    """Weighted sum of next-token cross-entropies over the batch (natural logarithm)."""
    return model.loss_sum(batch.ids, batch.packing, batch.weights)
