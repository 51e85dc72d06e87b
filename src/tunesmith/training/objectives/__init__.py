"""Objectives: what is minimised. Each is one file; see `types` for the contract, `custom` for one's own."""

from tunesmith.training.objectives.cross_entropy import cross_entropy
from tunesmith.training.objectives.make import BUILT_IN, make_objective, refuse_other_rows
from tunesmith.training.objectives.types import BuiltObjective, LossSum, Objective

__all__ = ["BUILT_IN", "BuiltObjective", "LossSum", "Objective", "cross_entropy", "make_objective", "refuse_other_rows"]
