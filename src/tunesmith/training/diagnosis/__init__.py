"""Plain-language diagnosis of a training: what its curves and rows say is wrong, and which settings would help."""

from tunesmith.training.diagnosis.answers import answer_measures
from tunesmith.training.diagnosis.registry import diagnose
from tunesmith.training.diagnosis.types import Diagnosis, NotFinite, TrainingFacts
from tunesmith.training.diagnosis.watcher import Watcher

__all__ = ["Diagnosis", "NotFinite", "TrainingFacts", "Watcher", "answer_measures", "diagnose"]
