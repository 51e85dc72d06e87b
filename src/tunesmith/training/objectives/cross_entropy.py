"""Next-token cross-entropy, weighted per token.

It serves both supervised fine-tuning (weights on answers) and continued pretraining (weights on all tokens): the
difference lies in the samples' weights, not here.
"""

from __future__ import annotations

from tunesmith.models.forward import LanguageModel
from tunesmith.ops.token_loss import CountedLoss, head_loss
from tunesmith.training.batching import Batch
from tunesmith.training.objectives.inputs import batch_weight, supervised
from tunesmith.training.objectives.types import LossSum


def cross_entropy(model: LanguageModel, batch: Batch) -> LossSum:
    """Weighted sum of next-token cross-entropies over the batch (natural logarithm)."""
    weight = float(sum(row.weights.sum(dtype="float64") for row in batch.rows))
    return LossSum(model.loss_sum(batch.ids, batch.packing, batch.weights, batch.previous, batch.learnt), weight)


def counted_cross_entropy(model: LanguageModel, batch: Batch) -> LossSum:
    """The same loss; its metric `token_accuracy` is the share of the weight on tokens that were predicted right."""
    hidden, targets, weights = supervised(model, batch)
    loss, shown = head_loss(hidden, *model.head(), targets, weights, model.rule, CountedLoss())
    return LossSum(loss, batch_weight(batch), shown)
