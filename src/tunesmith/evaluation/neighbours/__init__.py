"""Evidence for other tools: a finished run as lm-eval tasks, promptfoo config, Inspect logs, MLflow records."""

from tunesmith.evaluation.neighbours.evidence import Evidence, Shown, read_evidence, with_conversations
from tunesmith.evaluation.neighbours.writing import TARGETS, Options, Use, Written, write_as

__all__ = [
    "TARGETS",
    "Evidence",
    "Options",
    "Shown",
    "Use",
    "Written",
    "read_evidence",
    "with_conversations",
    "write_as",
]
