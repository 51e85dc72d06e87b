"""What kind of task a set of examples is, and by which rule."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from tunesmith.data.types import Example

JSON_SHARE = 0.95
"""Share of the answers that must be JSON lists or objects for extraction."""
LABEL_LENGTH, LABEL_WORDS = 64, 8
"""The longest answer, in characters and words, that still is a label."""
ROWS_PER_LABEL = 2
"""Rows per distinct answer, on average, below which answers are texts and not labels."""
NUMERIC_LABELS = 20
"""Distinct numbers above which answers are quantities and not labels."""


def is_json_answer(text: str) -> bool:
    """Whether an answer is a JSON list or object."""
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        return isinstance(json.loads(text), (list, dict))
    except (ValueError, RecursionError):
        return False


def infer_task(examples: Sequence[Example]) -> str:
    """`extraction`, `classification` or `generation`; see `explain_task` for the rule."""
    return explain_task(examples)[0]


def explain_task(examples: Sequence[Example]) -> tuple[str, str]:
    """The task and the reason for it.

    Extraction: at least 95 % of the answers are JSON lists or objects. Classification: there are two or more distinct
    answers, each one line of at most 64 characters and 8 words, seen twice or more on average, and not more than 20
    of them if all are numbers. Generation: everything else.
    """
    if not examples:
        return "generation", "there are no examples to judge by"
    json_answers = sum(is_json_answer(example.expected) for example in examples)
    if json_answers >= JSON_SHARE * len(examples):
        return "extraction", f"{json_answers:,} of {len(examples):,} answers are JSON lists or objects"
    answers = Counter(example.expected.strip() for example in examples)
    short = all(
        len(answer) <= LABEL_LENGTH and "\n" not in answer and len(answer.split()) <= LABEL_WORDS for answer in answers
    )
    if len(answers) < 2:
        return "generation", "all answers are the same"
    if not short:
        return "generation", "answers are free text"
    if len(answers) * ROWS_PER_LABEL > len(examples):
        return "generation", f"{len(answers):,} distinct answers in {len(examples):,} rows are too many for labels"
    if len(answers) > NUMERIC_LABELS and all(_is_number(answer) for answer in answers):
        return "generation", f"answers are {len(answers):,} different numbers"
    return "classification", f"{len(answers):,} distinct short answers in {len(examples):,} rows"


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
