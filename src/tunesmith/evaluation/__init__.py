"""Evaluation: candidates that answer, scores with intervals, and their comparison."""

from tunesmith.evaluation.comparison import Comparison, compare, compare_seeds, evaluate_candidate, load_evaluation
from tunesmith.evaluation.prompts import KChoice, PromptCandidate, choose_k
from tunesmith.evaluation.retrieval import Retriever
from tunesmith.evaluation.scoring import answer_and_score, measure_latency
from tunesmith.evaluation.shots import draw_shots
from tunesmith.evaluation.statistics import rows_needed, standard_error
from tunesmith.evaluation.trivial import TrivialBaseline, TrivialCandidate, trivial_baselines
from tunesmith.evaluation.types import (
    Answer,
    Candidate,
    Evaluation,
    MetricValue,
    PairedDifference,
    ScoredAnswer,
)
from tunesmith.tasks.metrics import quick_score

__all__ = [
    "Answer",
    "Candidate",
    "Comparison",
    "Evaluation",
    "KChoice",
    "MetricValue",
    "PairedDifference",
    "PromptCandidate",
    "Retriever",
    "ScoredAnswer",
    "TrivialBaseline",
    "TrivialCandidate",
    "answer_and_score",
    "choose_k",
    "compare",
    "compare_seeds",
    "draw_shots",
    "evaluate_candidate",
    "load_evaluation",
    "measure_latency",
    "quick_score",
    "rows_needed",
    "standard_error",
    "trivial_baselines",
]
