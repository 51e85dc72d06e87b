"""Focal loss (arXiv 1708.02002): what the model is sure of counts less, so that rare answers are heard."""

import torch.nn.functional as F
from torch import Tensor, nn


class FocalLoss(nn.Module):
    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        nll = F.cross_entropy(logits, targets, reduction="none")
        return (1 - (-nll).exp()) ** self.gamma * nll
