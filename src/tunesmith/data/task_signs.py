"""Signs of tasks whose answers are texts: what columns are called, what answers share with their inputs, their script.

Each function looks at some of the rows and says why they are of its task, or None. A text wrongly taken for a task is
scored by the wrong metric, one not recognised is a generation, which suits every text: so a sign must be seen in nine
rows of ten, and what could as well be something else is left alone.
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from tunesmith.data.formats.squad import expected_of
from tunesmith.data.quality.language import language_of, main_script
from tunesmith.data.template import cell_text
from tunesmith.data.types import Example

MOST = 0.9
"""Share of the rows that must show a sign."""
FEWEST = 5
"""Rows from which on texts are judged by their shape."""

_WORD = re.compile(r"\w+")
_SUMMARY_COLUMNS = frozenset({"summary", "summaries", "highlights", "abstract", "tldr", "headline"})
_LANGUAGE_NAMES = (
    "ar bg ca cs da de el en es et fa fi fr he hi hr hu it ja ko lt lv nl pl pt ro ru sk sl sr sv th tr uk vi zh "
    "arabic bulgarian chinese czech danish dutch english finnish french german greek hebrew hindi hungarian "
    "indonesian italian japanese korean norwegian persian polish portuguese romanian russian spanish swedish thai "
    "turkish ukrainian vietnamese"
)
_LANGUAGES = frozenset(_LANGUAGE_NAMES.split())
"""What columns are called. Not `id` and `no`, which mostly are something else."""
_SCALES = frozenset({"rating", "ratings", "stars", "star", "grade", "severity", "priority", "urgency", "likert"})
_CLASSES = frozenset({"label", "labels", "class", "category", "intent"})
_DIGITS = re.compile(r"\d+", re.ASCII)
_WHOLE = re.compile(r"[-+]?\d{1,9}(?:\.0*)?", re.ASCII)
"""A whole number, as tables write it that hold it as a decimal too: 4 or 4.0."""
_LONGEST_CODE = 9
_ORDERS = (
    ("low", "medium", "high"),
    ("small", "medium", "large"),
    ("negative", "neutral", "positive"),
    ("easy", "medium", "hard"),
    ("never", "rarely", "sometimes", "often", "always"),
    ("bad", "fair", "good"),
    ("poor", "fair", "good", "excellent"),
    ("strongly disagree", "disagree", "neutral", "agree", "strongly agree"),
)
_ASKS_FOR = {
    "summarisation": re.compile(r"\b(?:summari[sz]e|summary of|tl;?dr)\b", re.IGNORECASE),
    "translation": re.compile(
        r"\btranslate\b|\btranslation (?:in)?to\b|\b(?:übersetze|traduis|traduce|traduci|переведи)\b", re.IGNORECASE
    ),
}
_QUERY = re.compile(r"\s*(?:with\b.*?\)\s*)?select\b.+?\bfrom\b", re.IGNORECASE | re.DOTALL)
_COMPRESSED = 4
"""How many times as long as the answer an input is, in words, that is summarised."""
_LONG_INPUT = 60
_SHORT_ANSWER = 6
"""Words of an answer (the median) that is a stretch of a passage."""


def is_query(answer: str) -> bool:
    """Whether an answer is an SQL query that reads from a table."""
    return _QUERY.match(answer) is not None


def is_python(answer: str) -> bool:
    """Whether an answer is Python that defines something."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that are none
            tree = ast.parse(answer)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) for node in tree.body)


def solution_with_tests(examples: Sequence[Example]) -> str | None:
    """Whether answers are JSON objects of a solution in Python and its tests; says by which columns."""
    keys: tuple[str, ...] | None = None
    for example in examples:
        value = json.loads(example.expected)
        if not isinstance(value, dict) or len(value) < 2 or keys not in (None, tuple(value)):
            return None
        keys = tuple(value)
        if not isinstance(value[keys[0]], str) or not is_python(value[keys[0]].replace("\r\n", "\n")):
            return None
    tests = next((key for key in (keys or ())[1:] if "test" in key.lower() or "assert" in key.lower()), None)
    return f"the answers are Python ({(keys or ('',))[0]}) with tests ({tests})" if tests else None


def squad_rows(examples: Sequence[Example]) -> bool:
    """Whether all rows have a question and answers, and expect these answers."""
    return all(
        "question" in example.values
        and "answers" in example.values
        and expected_of(example.values["answers"]) == example.expected
        for example in examples
    )


def several_answers(examples: Sequence[Example]) -> int:
    """Rows with a list of right answers of which the first is learnt; 0 where another row's JSON is something else."""
    count = 0
    for example in examples:
        if not example.expected.startswith("["):
            continue
        try:
            answers = json.loads(example.expected)
        except (ValueError, RecursionError):
            continue
        if not isinstance(answers, list) or not answers or answers[0] != example.messages[-1].content:
            return 0
        count += 1
    return count


def passages_with_answers(examples: Sequence[Example]) -> str | None:
    """Inputs of a text and a question, whose short answers stand in the text."""
    if len(examples) < FEWEST:
        return None
    lengths = [len(example.expected.split()) for example in examples]
    passages = [len(example.question.split()) for example in examples]
    if statistics.median(lengths) > _SHORT_ANSWER or statistics.median(passages) < 5 * _SHORT_ANSWER:
        return None
    if len({example.expected for example in examples}) * 2 <= len(examples):
        return None
    asked = _share(examples, lambda e: "?" in e.question)
    found = _share(examples, lambda e: _holds(e.question, e.expected))
    if asked < MOST or found < MOST:
        return None
    return f"inputs are a text with a question, and {found:.0%} of the short answers stand in the text"


def _holds(text: str, answer: str) -> bool:
    """Whether an answer stands in a text, as whole words."""
    bare = answer.strip().rstrip(".").casefold()
    return bool(bare) and re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", text.casefold()) is not None


def two_languages(examples: Sequence[Example]) -> str | None:
    """Columns named after languages; a request to translate; inputs and answers in two scripts or languages."""
    if len(examples) < FEWEST:
        return None
    column = _answer_column(examples)
    if column is not None and column.lower() in _LANGUAGES:
        other = next((n for n in _columns(examples) if n != column and n.lower() in _LANGUAGES), None)
        if other is not None:
            return f"the columns {other} and {column} are named after languages"
    if _share(examples, lambda e: _ASKS_FOR["translation"].search(_asked(e)) is not None) >= MOST:
        return "the inputs ask for a translation"
    # A translation is about as long as what is translated, by a factor that is much the same in all rows.
    first, middle, third = statistics.quantiles([len(e.question) / max(1, len(e.expected)) for e in examples], n=4)
    if not 0.2 <= middle <= 5 or third > 2.5 * first:
        return None
    for name, tell in (("script", main_script), ("language", language_of)):
        pair = _two(tell, examples)
        if pair is not None:
            return f"inputs are in the {name} {pair[0].title()}, answers in {pair[1].title()}"
    return None


def _two(tell: Callable[[str], str | None], examples: Sequence[Example]) -> tuple[str, str] | None:
    """What inputs and what answers are in, where both are known and differ."""
    kinds = []
    for texts in ([e.question for e in examples], [e.expected for e in examples]):
        counts = Counter(kind for text in texts if (kind := tell(text)) is not None)
        if not counts:
            return None
        kind, count = counts.most_common(1)[0]
        if count < MOST * counts.total() or counts.total() < len(texts) / 3:
            return None
        kinds.append(kind)
    return (kinds[0], kinds[1]) if kinds[0] != kinds[1] else None


def shortened_texts(examples: Sequence[Example]) -> str | None:
    """A column named like a summary; a request for one; short answers in the words of long inputs."""
    if len(examples) < FEWEST:
        return None
    shorter = statistics.median(len(e.question) / max(1, len(e.expected)) for e in examples)
    if shorter < 2:
        return None
    column = _answer_column(examples)
    if column is not None and column.lower() in _SUMMARY_COLUMNS:
        return f"the answers stand in the column {column} and are shorter than the inputs"
    if _share(examples, lambda e: _ASKS_FOR["summarisation"].search(_asked(e)) is not None) >= MOST:
        return "the inputs ask for a summary"
    if shorter < _COMPRESSED or _share(examples, _may_be_summary) < MOST or not _in_words_of(examples):
        return None
    return f"inputs are {shorter:.0f} times as long as the answers, which mostly use their words, and ask no question"


def _may_be_summary(example: Example) -> bool:
    """A long input that asks nothing where questions stand, and an answer of some words that asks nothing."""
    asked, said = example.question, example.expected
    if len(asked.split()) < _LONG_INPUT or len(said.split()) < _SHORT_ANSWER:
        return False
    return "?" not in asked[:200] and "?" not in asked[-200:] and not said.rstrip().endswith("?")


def _in_words_of(examples: Sequence[Example]) -> bool:
    """Whether answers say what their inputs say: most of their words, and of the long ones, which carry the meaning."""
    all_words = [_taken(example, 1) for example in examples]
    long_words = statistics.median(_taken(example, 5) for example in examples)
    few = sum(share < 0.4 for share in all_words)
    return statistics.median(all_words) >= 0.6 and long_words >= 0.5 and few <= (1 - MOST) * len(examples)


def _taken(example: Example, letters: int) -> float:
    """The share of an answer's different words of so many letters or more that stand in its input."""
    said = {word for word in _WORD.findall(example.expected.casefold()) if len(word) >= letters}
    return len(said & set(_WORD.findall(example.question.casefold()))) / max(1, len(said))


def scale(examples: Sequence[Example], answers: Iterable[str]) -> str | None:
    """Whether labels are whole numbers in a row, under a name of a scale such as rating or stars."""
    column = _answer_column(examples)
    if column is None or not set(re.split(r"[\W_]+", column.lower())) & _SCALES:
        return None
    labels = {answer.strip() for answer in answers}
    if not all(map(_WHOLE.fullmatch, labels)):
        return None
    numbers = sorted(int(float(label)) for label in labels)  # "1" and "01" are two labels, and have no order
    if len(numbers) < 3 or numbers != list(range(numbers[0], numbers[-1] + 1)):
        return None
    return f"the labels are the numbers {numbers[0]} to {numbers[-1]} of the column {column}, in their order"


def codes(examples: Sequence[Example], answers: Collection[str]) -> bool:
    """Whether whole numbers are names and not amounts: written at one length with leading zeros, such as 00501, or
    counted from 0 or 1 on in a column named like a label, as class labels of data sets are.
    """
    if len(answers) < 2 or not all(map(_DIGITS.fullmatch, answers)):
        return False
    if len({len(answer) for answer in answers}) == 1 and any(len(a) > 1 and a.startswith("0") for a in answers):
        return True
    column = _answer_column(examples)
    if column is None or not set(re.split(r"[\W_]+", column.lower())) & _CLASSES:
        return False
    numbers = {int(answer) for answer in answers if len(answer) <= _LONGEST_CODE}
    return len(numbers) == len(answers) and min(numbers) <= 1 and MOST * max(numbers) <= len(numbers)


def known_order(answers: Iterable[str]) -> str | None:
    """The labels in an order that everybody knows, such as "low, medium, high"; None where they have none."""
    found = {answer.strip().casefold() for answer in answers}
    for order in _ORDERS:
        if len(found) > 2 and found <= set(order):
            return ", ".join(label for label in order if label in found)
    return None


def _answer_column(examples: Sequence[Example]) -> str | None:
    """The one column whose cells are the answers."""
    names = [n for n in _columns(examples) if all(_cell(e, n) == e.expected.strip() for e in examples)]
    return names[0] if len(names) == 1 else None


def _columns(examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(examples[0].values) if examples else ()


def _cell(example: Example, name: str) -> str:
    return cell_text(example.values.get(name)).strip()


def _asked(example: Example) -> str:
    """Where a request stands: the beginning or the end of the input, or the system message."""
    system = next((turn.content for turn in example.prompt if turn.role == "system"), "")
    return f"{system[:200]}\n{example.question[:80]}\n{example.question[-80:]}"


def _share(examples: Sequence[Example], shows: Callable[[Example], bool]) -> float:
    return sum(map(shows, examples)) / len(examples) if examples else 0.0
