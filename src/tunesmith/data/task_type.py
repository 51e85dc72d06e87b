"""What kind of task a set of examples is, and by which rule."""

from __future__ import annotations

import json
import re
import statistics
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
SENTENCE_WORDS = 8
"""Words from which on an element of a list is a sentence and not a name."""
CALL_SHARE = 0.2
"""Share of the answers that must be calls of functions; the others are words where no function fits."""
ROWS_PER_PART = 4
"""How often on average each part of answers that are lists is seen, so that the parts are labels and not words."""

_TAG = re.compile(r"O|[BIESLU]-\S+")
_SOLVED = re.compile(r"####\s*[-$]?[\d.,]+\s*\Z")
_DIGITS = re.compile(r"\d[\d,.]*")
_SEPARATOR = re.compile(r"\s*[;|,]\s*")


def is_json_answer(text: str) -> bool:
    """Whether an answer is a JSON list or object."""
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        return isinstance(json.loads(text), (list, dict))
    except (ValueError, RecursionError):
        return False


def infer_task(examples: Sequence[Example]) -> str:
    """The name of the task; see `explain_task` for the rule."""
    return explain_task(examples)[0]


def explain_task(examples: Sequence[Example]) -> tuple[str, str]:
    """The task and the reason for it, by the first rule that holds:

    - tool_calls: a fifth of the answers or more are JSON calls (a name with arguments) and no other is JSON;
    - token_classification: all answers are tags such as `B-PER O`, more than one in most;
    - summarisation: the answers are JSON lists of sentences (8 words or more in the median) that mostly do not stand in
      the input, so that each list holds several references;
    - extraction: at least 95 % of the answers are JSON lists or objects;
    - classification: there are two or more distinct answers, each one line of at most 64 characters and 8 words, seen
      twice or more on average, and not more than 20 of them if all are numbers;
    - maths: all answers are numbers or end with `#### NUMBER`, and most inputs of plain numbers hold two or more;
    - regression: all answers are numbers;
    - multi_label: answers are lists of short texts that each are seen four times or more on average;
    - generation: everything else. Single summaries, translations, answers to questions, SQL and code are texts like
      others and are not told apart; the recipe names them.
    """
    if not examples:
        return "generation", "there are no examples to judge by"
    total, expected = len(examples), [example.expected.strip() for example in examples]
    json_answers = [answer for answer in expected if is_json_answer(answer)]
    calls = sum(_is_call(answer) for answer in json_answers)
    if calls >= CALL_SHARE * total and calls == len(json_answers):
        return "tool_calls", f"{calls:,} of {total:,} answers are calls with a name and arguments"
    if all(_are_tags(answer) for answer in expected):
        return "token_classification", f"all {total:,} answers are tags of tokens"
    if len(json_answers) == total and _are_references(examples):
        return "summarisation", f"all {total:,} answers are lists of sentences that are not in the input"
    if len(json_answers) >= JSON_SHARE * total:
        return "extraction", f"{len(json_answers):,} of {total:,} answers are JSON lists or objects"
    answers = Counter(expected)
    numbers = _numbers(examples, answers)
    short = all(_is_label(answer) for answer in answers)
    if numbers is not None and (not short or len(answers) > NUMERIC_LABELS):
        return numbers
    if len(answers) < 2:
        return "generation", "all answers are the same"
    if short and len(answers) * ROWS_PER_LABEL <= total:
        return "classification", f"{len(answers):,} distinct short answers in {total:,} rows"
    sets = _label_sets(expected)
    if sets is not None:
        return "multi_label", f"answers are lists of {sets:,} distinct short texts in {total:,} rows"
    if not short:
        return "generation", "answers are free text"
    return "generation", f"{len(answers):,} distinct answers in {total:,} rows are too many for labels"


def _is_label(answer: str) -> bool:
    return len(answer) <= LABEL_LENGTH and "\n" not in answer and len(answer.split()) <= LABEL_WORDS


def _is_call(answer: str) -> bool:
    value = json.loads(answer)
    calls = value if isinstance(value, list) else [value]
    return bool(calls) and all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and ("arguments" in call or "parameters" in call)
        for call in calls
    )


def _are_tags(answer: str) -> bool:
    """Several tags, or one that marks an entity."""
    tags = answer.split()
    return all(_TAG.fullmatch(tag) for tag in tags) and (len(tags) > 1 or tags[:1] not in ([], ["O"]))


def _are_references(examples: Sequence[Example]) -> bool:
    """Whether all answers are lists of sentences, most of which do not stand in the input word by word."""
    lengths, found = [], 0
    for example in examples:
        texts = json.loads(example.expected)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            return False
        lengths += [len(text.split()) for text in texts]
        found += sum(text in example.question for text in texts)
    return statistics.median(lengths) >= SENTENCE_WORDS and 2 * found < len(lengths)


def _numbers(examples: Sequence[Example], answers: Counter[str]) -> tuple[str, str] | None:
    """Maths or regression where all answers are numbers, or end with one as GSM8K's do."""
    solved = sum(bool(_SOLVED.search(answer)) for answer in answers)
    if solved == len(answers):
        return "maths", "all answers end with #### and a number"
    if not all(_is_number(answer) for answer in answers):
        return None
    posed = sum(len(_DIGITS.findall(example.question)) > 1 for example in examples)
    if posed > len(examples) / 2:
        return "maths", f"answers are {len(answers):,} different numbers, and most inputs hold two numbers or more"
    return "regression", f"answers are {len(answers):,} different numbers"


def _label_sets(expected: Sequence[str]) -> int | None:
    """The distinct parts of answers that are lists of labels; None where they are not."""
    parts: Counter[str] = Counter()
    several = 0
    for answer in expected:
        found = [part.strip() for part in _SEPARATOR.split(answer)]
        if len(set(found)) < len(found) or not all(part and _is_label(part) for part in found):
            return None
        several += len(found) > 1
        parts.update(found)
    often = parts.total() >= ROWS_PER_PART * len(parts)
    return len(parts) if often and several * 5 >= len(expected) and len(parts) > 1 else None


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
