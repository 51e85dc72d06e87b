"""Evaluation: candidates that answer, scores with intervals, and their comparison."""

from tunesmith.evaluation.comparison import (
    Comparison,
    compare,
    compare_seeds,
    evaluate_candidate,
    load_evaluation,
    value_over_seeds,
)
from tunesmith.evaluation.document_files import Document, Documents, read_documents
from tunesmith.evaluation.passages import Passage, PassageFinder, cut_all
from tunesmith.evaluation.prompt_choice import Choice, Variant, choose_prompt
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.retrieval import Retriever
from tunesmith.evaluation.scoring import answer_and_score, measure_latency
from tunesmith.evaluation.shots import draw_shots, first_shots
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
    "Choice",
    "Comparison",
    "Document",
    "Documents",
    "Evaluation",
    "MetricValue",
    "PairedDifference",
    "Passage",
    "PassageFinder",
    "PromptCandidate",
    "Retriever",
    "ScoredAnswer",
    "TrivialBaseline",
    "TrivialCandidate",
    "Variant",
    "answer_and_score",
    "choose_prompt",
    "compare",
    "compare_seeds",
    "cut_all",
    "draw_shots",
    "evaluate_candidate",
    "first_shots",
    "load_evaluation",
    "measure_latency",
    "quick_score",
    "read_documents",
    "rows_needed",
    "standard_error",
    "trivial_baselines",
    "value_over_seeds",
]
