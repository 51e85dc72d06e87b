"""Next-token cross-entropy, weighted per token.

It serves both supervised fine-tuning (weights on answers) and continued pretraining (weights on all tokens): the
difference lies in the samples' weights, not here.
"""

from __future__ import annotations

from tunesmith.models.forward import LanguageModel
from tunesmith.training.batching import Batch
from tunesmith.training.objectives.types import LossSum


def cross_entropy(model: LanguageModel, batch: Batch) -> LossSum:
    """Weighted sum of next-token cross-entropies over the batch (natural logarithm)."""
    weight = float(sum(row.weights.sum(dtype="float64") for row in batch.rows))
    return LossSum(model.loss_sum(batch.ids, batch.packing, batch.weights, batch.previous, batch.learnt), weight)
