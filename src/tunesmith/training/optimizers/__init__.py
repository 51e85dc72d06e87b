"""Optimisers: what moves parameters by their gradients. Rounding and memory are decided here, schedules are not."""

from tunesmith.training.optimizers.in_backward import InBackward, why_not_in_backward
from tunesmith.training.optimizers.make import OptimizerPlan, make_optimizer
from tunesmith.training.optimizers.optimizer import Optimizer, grad_norm_and_clip, set_learning_rate

__all__ = [
    "InBackward",
    "Optimizer",
    "OptimizerPlan",
    "grad_norm_and_clip",
    "make_optimizer",
    "set_learning_rate",
    "why_not_in_backward",
]
