"""Cross-entropy with label smoothing and z-loss; the formulas stand in `ops/token_loss.py`."""

from __future__ import annotations

from tunesmith.models.forward import LanguageModel
from tunesmith.ops.token_loss import TokenLoss, head_loss
from tunesmith.training.batching import Batch
from tunesmith.training.objectives.inputs import batch_weight, supervised
from tunesmith.training.objectives.types import LossSum, Objective


def regularised_cross_entropy(label_smoothing: float = 0.0, z_loss: float = 0.0) -> Objective:
    """The objective for these settings. Its metric `cross_entropy` is the plain loss, comparable between settings."""
    terms = TokenLoss(label_smoothing, z_loss)

    def objective(model: LanguageModel, batch: Batch) -> LossSum:
        hidden, targets, weights = supervised(model, batch)
        loss, shown = head_loss(hidden, *model.head(), targets, weights, model.rule, terms)
        return LossSum(loss, batch_weight(batch), shown)

    return objective
