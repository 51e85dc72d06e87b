"""What kind of task a set of examples is, and by which rule."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from tunesmith.data import task_signs as signs
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
COMBINATIONS = 2
"""Times as many different answers as parts, from which on answers are sets of labels and not labels."""
OUT_OF_INPUT = 0.2
"""Share of the parts of JSON lists that may stand in the input for them to be labels and not extracted."""
LOOK_AT = 500
"""Rows by which texts are judged."""

_TAG = re.compile(r"O|[BIESLU]-\S+")
_SOLVED = re.compile(r"####\s*[-$]?[\d.,]+\s*\Z")
_BOXED = re.compile(r"\\boxed\{")
_DIGITS = re.compile(r"\d[\d,.]*")
_ASKS = re.compile(r"\?|\b(?:how (?:many|much|far|long|old)|what is|find|calculate|compute|solve)\b", re.IGNORECASE)
_SEPARATOR = re.compile(r"\s*[;|,]\s*")
_NUMBER = re.compile(
    r"[-+]?\$?[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?\s?%?|nan",
    re.ASCII | re.IGNORECASE,
)
"""As the tasks read one: separators of thousands, a dollar or per cent sign; not `3,5`, which may be a list of two.

`nan` is none, but stands in columns of numbers; the task then names the row.
"""
_WITH_COMMA = re.compile(r"[-+]?\d+,\d+", re.ASCII)


def is_json_answer(text: str) -> bool:
    """Whether an answer is a JSON list or object."""
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        return isinstance(json.loads(text), (list, dict))
    except (ValueError, RecursionError):
        return False


def infer_task(examples: Sequence[Example], *, database: bool = False) -> str:
    """The name of the task; see `explain_task` for the rule."""
    return explain_task(examples, database=database)[0]


def explain_task(examples: Sequence[Example], *, database: bool = False) -> tuple[str, str]:
    """The task and the reason for it, by the first rule that holds. `database`: whether there is one to run queries on.

    - tool_calls: a fifth of the answers or more are JSON calls (a name with arguments) and no other is JSON;
    - token_classification: all answers are tags such as `B-PER O`, more than one in most;
    - question_answering: rows have a question and its answers as SQuAD's, or lists of answers of which one is learnt;
    - summarisation: the answers are JSON lists of sentences (8 words or more in the median) that mostly do not stand in
      the input, so that each list holds several references;
    - code: the answers are JSON objects of a solution in Python and its tests;
    - multi_label: the answers are JSON lists of short texts that each are seen four times or more on average and mostly
      do not stand in the input;
    - extraction: at least 95 % of the answers are JSON lists or objects;
    - maths: all answers end with `#### NUMBER` or hold `\\boxed{…}`, or are numbers and most inputs ask a question with
      two numbers or more;
    - regression: all answers are numbers, more than 20 different ones, and not codes: such that begin with 0 and are
      as long as each other, or whole numbers from 0 or 1 on without many gaps in a column named like a label;
    - text_to_sql: nine in ten answers are queries, and there is a database;
    - ordinal: labels that are whole numbers in a row, in a column named like a scale (rating, stars, severity);
    - multi_label: answers are lists of short texts that each are seen four times or more on average, and that are
      combined in twice as many ways or more as there are of them;
    - classification: there are two or more distinct answers, each one line of at most 64 characters and 8 words, seen
      twice or more on average, and not more than 20 of them if all are numbers that are no codes;
    - multi_label: answers are such lists of texts, however combined;
    - translation: columns are named after languages, inputs ask for it, or inputs and answers are in two scripts or two
      languages;
    - question_answering: inputs are a text with a question, and the short answers stand in the text;
    - summarisation: the answers' column is named like a summary, inputs ask for one, or short answers use the words of
      inputs that are four times as long or longer and ask no question;
    - generation: everything else, as it suits every text.

    Texts are judged by 500 rows at equal distances.
    """
    if not examples:
        return "generation", "there are no examples to judge by"
    total, expected = len(examples), [example.expected.strip() for example in examples]
    json_answers = [answer for answer in expected if is_json_answer(answer)]
    structured = _structured(examples, expected, json_answers)
    if structured is not None:
        return structured
    answers = Counter(expected)
    codes = signs.codes(examples, answers)
    numbers = None if codes else _numbers(examples, answers)
    short = all(_is_label(answer) for answer in answers)
    if numbers is not None and (not short or len(answers) > NUMERIC_LABELS):
        return numbers
    if len(answers) < 2:
        return "generation", "all answers are the same"
    some = examples[:: -(-total // LOOK_AT)]
    queries = sum(map(signs.is_query, expected))
    if queries >= signs.MOST * total:
        return _sql(queries, total, database)
    if len(answers) > NUMERIC_LABELS and all(map(_WITH_COMMA.fullmatch, answers)):
        return "generation", (
            "answers are numbers with a comma: decimals are written with a point here, and lists of two labels are of "
            "the task multi_label"
        )
    sets = _label_sets(expected)
    combined = sets is not None and sets * COMBINATIONS <= len(answers)
    if short and len(answers) * ROWS_PER_LABEL <= total and not combined:
        return _labels(some, answers, total)
    if sets is not None:
        return "multi_label", f"answers are lists of {sets:,} distinct short texts in {total:,} rows"
    for task, sign in _TEXTS:
        reason = sign(some)
        if reason is not None:
            return task, reason
    if sum(signs.is_python(example.expected) for example in some) >= signs.MOST * len(some):
        return "generation", (
            "answers are Python; with a column of tests (data.columns.answer: [CODE, TESTS]) they are of the task code"
        )
    if not short:
        return "generation", "answers are free text"
    return "generation", f"{len(answers):,} distinct answers in {total:,} rows are too many for labels"


_TEXTS: tuple[tuple[str, Callable[[Sequence[Example]], str | None]], ...] = (
    ("translation", signs.two_languages),
    ("question_answering", signs.passages_with_answers),
    ("summarisation", signs.shortened_texts),
)


def _structured(
    examples: Sequence[Example], expected: Sequence[str], json_answers: Sequence[str]
) -> tuple[str, str] | None:
    """Tasks whose answers are calls, tags, lists or objects."""
    total = len(examples)
    calls = sum(_is_call(answer) for answer in json_answers)
    if calls >= CALL_SHARE * total and calls == len(json_answers):
        return "tool_calls", f"{calls:,} of {total:,} answers are calls with a name and arguments"
    if all(_are_tags(answer) for answer in expected):
        return "token_classification", f"all {total:,} answers are tags of tokens"
    if signs.squad_rows(examples):
        return "question_answering", "the rows have a question and its answers, as SQuAD's"
    several = signs.several_answers(examples)
    if several:
        return "question_answering", f"{several:,} of {total:,} rows have several right answers"
    if len(json_answers) == total:
        if _are_references(examples):
            return "summarisation", f"all {total:,} answers are lists of sentences that are not in the input"
        tested = signs.solution_with_tests(examples[:LOOK_AT])
        if tested is not None:
            return "code", tested
        listed = _listed_labels(examples)
        if listed is not None:
            return "multi_label", f"answers are JSON lists of {listed:,} distinct labels in {total:,} rows"
    if len(json_answers) >= JSON_SHARE * total:
        return "extraction", f"{len(json_answers):,} of {total:,} answers are JSON lists or objects"
    return None


def _sql(queries: int, total: int, database: bool) -> tuple[str, str]:
    if database:
        return "text_to_sql", f"{queries:,} of {total:,} answers are SQL queries"
    return "generation", (
        f"{queries:,} of {total:,} answers are SQL queries; with task.database they are of the task text_to_sql, and "
        "are run"
    )


def _labels(some: Sequence[Example], answers: Counter[str], total: int) -> tuple[str, str]:
    """One of several labels, which have an order where it is sure."""
    scale = signs.scale(some, answers)
    if scale is not None:
        return "ordinal", scale
    reason = f"{len(answers):,} distinct short answers in {total:,} rows"
    order = signs.known_order(answers)
    if order is not None:
        reason += f"; task.type: ordinal with task.labels in their order ({order}) counts near misses as such"
    return "classification", reason


def _listed_labels(examples: Sequence[Example]) -> int | None:
    """The distinct labels where all answers are JSON lists of them, mostly not out of the input; else None."""
    parts: Counter[str] = Counter()
    several = found = 0
    for example in examples:
        value = json.loads(example.expected)
        if not isinstance(value, list) or not all(isinstance(part, str) and _is_label(part) for part in value):
            return None
        if len(set(value)) < len(value):
            return None
        several += len(value) > 1
        text = example.question.casefold()
        found += sum(part.casefold() in text for part in value)
        parts.update(value)
    often = len(parts) > 1 and parts.total() >= ROWS_PER_PART * len(parts)
    return len(parts) if often and several * 5 >= len(examples) and found < OUT_OF_INPUT * parts.total() else None


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
    if all(_BOXED.search(answer) for answer in answers):
        return "maths", "all answers hold a result in \\boxed{}"
    if not all(_is_number(answer) for answer in answers):
        return None
    posed = sum(len(_DIGITS.findall(e.question)) > 1 and bool(_ASKS.search(e.question)) for e in examples)
    if posed > len(examples) / 2:
        reason = "and most inputs ask a question with two numbers or more"
        return "maths", f"answers are {len(answers):,} different numbers, {reason}"
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
    return _NUMBER.fullmatch(text) is not None
