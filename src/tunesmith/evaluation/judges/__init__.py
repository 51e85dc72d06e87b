"""Judges: models that compare or score answers, and whether their opinion counts."""

from tunesmith.evaluation.judges.judged import (
    Failure,
    JudgedPair,
    Said,
    by_criterion,
    consistency,
    judge_by_choice,
    judge_by_scores,
)
from tunesmith.evaluation.judges.labels import read_labels
from tunesmith.evaluation.judges.questions import Mode, Question, questions, read_choice, read_scores
from tunesmith.evaluation.judges.rubric import Criterion, Rubric, load_rubric
from tunesmith.evaluation.judges.trust import FEWEST_LABELS, MOST_UNJUDGED, Trust, measure_trust

__all__ = [
    "FEWEST_LABELS",
    "MOST_UNJUDGED",
    "Criterion",
    "Failure",
    "JudgedPair",
    "Mode",
    "Question",
    "Rubric",
    "Said",
    "Trust",
    "by_criterion",
    "consistency",
    "judge_by_choice",
    "judge_by_scores",
    "load_rubric",
    "measure_trust",
    "questions",
    "read_choice",
    "read_labels",
    "read_scores",
]
