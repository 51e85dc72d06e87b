"""What a model can do beside its task: general text and general instructions, to see what tuning made it forget."""

from tunesmith.evaluation.general.perplexity import perplexity
from tunesmith.evaluation.general.sets import GeneralSets, Instruction, follows, general_sets

__all__ = ["GeneralSets", "Instruction", "follows", "general_sets", "perplexity"]
