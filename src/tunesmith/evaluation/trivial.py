"""Trivial baselines: what a model must beat before it is worth anything.

Each is one function that learns from the training rows, chooses on the validation rows where there is something to
choose, and returns a rule from rows to answer texts. The tuned model gets its rows the same way: weights come from
training rows only, validation rows only choose, and nothing is fitted again on both. Answers are texts and go through
the same parser as those of a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.types import Example
from tunesmith.errors import DataError
from tunesmith.evaluation.retrieval import Retriever
from tunesmith.evaluation.trivial_classification import tfidf_logistic_regression
from tunesmith.evaluation.trivial_extraction import (
    amount_and_unit,
    copied_lines,
    list_dictionary,
    object_dictionary,
    object_majority,
)
from tunesmith.evaluation.trivial_labels import median_label, most_frequent_tag, tag_dictionary, tfidf_label_sets
from tunesmith.evaluation.trivial_nearest import nearest_answers
from tunesmith.evaluation.trivial_numbers import arithmetic, mean_number, median_number, number_in_input, tfidf_ridge
from tunesmith.evaluation.trivial_rules import Learn, Learned, Rule
from tunesmith.evaluation.trivial_text import lead_sentences, nearest_sentence
from tunesmith.evaluation.types import Answer
from tunesmith.tasks import (
    Classification,
    Code,
    Extraction,
    Generation,
    Maths,
    MultiLabel,
    Ordinal,
    QuestionAnswering,
    Regression,
    Summarisation,
    Task,
    TextToSql,
    TokenClassification,
    ToolCalls,
    Translation,
)


@dataclass(frozen=True, slots=True)
class TrivialCandidate:
    """A fitted rule. Its answers have no tokens."""

    name: str
    rule: Rule
    notes: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], skip: int = 0) -> Iterator[Answer]:
        """Answers to `examples[skip:]`."""
        asked = examples[skip:]
        for example, text in zip(asked, self.rule(asked) if asked else (), strict=True):
            yield Answer(text, example.question)


@dataclass(frozen=True, slots=True)
class TrivialBaseline:
    """A rule not yet fitted."""

    name: str
    learn: Learn

    def fit(self, train: Sequence[Example], validation: Sequence[Example]) -> TrivialCandidate:
        """Learn from `train`, choose on `validation`. Raises `DataError` without training rows."""
        if not train:
            raise DataError(
                "there are no training rows to fit a baseline on",
                where=self.name,
                expected="at least one training row",
                fix="check data.train and data.split",
            )
        rule, notes = self.learn(train, validation)
        return TrivialCandidate(self.name, rule, notes)


def trivial_baselines(task: Task) -> tuple[TrivialBaseline, ...]:
    """The trivial baselines of a task, the simplest first; none for a kind of task not known here."""
    match task:
        case Ordinal():
            named: dict[str, Learn] = {
                "majority": _majority(task), "median": median_label(task), "knn": nearest_answers(task),
                "tfidf_lr": tfidf_logistic_regression(task),
            }  # fmt: skip
        case Classification():
            named = {
                "majority": _majority(task), "knn": nearest_answers(task), "tfidf_lr": tfidf_logistic_regression(task),
            }  # fmt: skip
        case MultiLabel():
            named = {"majority": _majority(task), "knn": nearest_answers(task), "tfidf_lr": tfidf_label_sets(task)}
        case Regression():
            named = {
                "mean": mean_number(task), "median": median_number(task), "number": number_in_input(task),
                "knn": nearest_answers(task), "tfidf_ridge": tfidf_ridge(task),
            }  # fmt: skip
        case Maths():
            named = {"majority": _majority(task), "arithmetic": arithmetic(task)}
        case Extraction(form="object"):
            named = {"majority": object_majority(task), "dictionary": object_dictionary(task)}
        case Extraction(elements="text"):
            named = {"copy": copied_lines, "amount_unit": amount_and_unit, "dictionary": list_dictionary(task)}
        case TokenClassification():
            named = {"majority": most_frequent_tag(task), "dictionary": tag_dictionary(task)}
        case Summarisation():
            named = {"lead_k": lead_sentences(task), "nearest": _nearest(task)}
        case QuestionAnswering():
            named = {"majority": _majority(task), "sentence": nearest_sentence, "nearest": _nearest(task)}
        case Translation() | Generation():
            named = {"majority": _majority(task), "copy": _copy(task), "nearest": _nearest(task)}
        case ToolCalls():
            named = {"majority": _majority(task), "no_call": _no_call, "nearest": _nearest(task)}
        case TextToSql() | Code():
            named = {"majority": _majority(task), "nearest": _nearest(task)}
        case Extraction():
            named = {"majority": _majority(task)}
        case _:
            named = {}
    return tuple(TrivialBaseline(f"trivial_{name}", learn) for name, learn in named.items())


def _closing(task: Task) -> str:
    """The text a template puts after every answer; labels are read without it."""
    return "" if isinstance(task, Classification | Extraction) else str(getattr(task, "closing", ""))


def _majority(task: Task) -> Learn:
    """The most frequent training answer to everything; of equally frequent ones the first in sorted order."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        counts = Counter(task.reply(example.expected) for example in train)
        answer, count = min(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        said = answer + _closing(task)
        return (lambda examples: [said] * len(examples)), {"training_share": count / len(train)}

    return learn


def _copy(task: Task) -> Learn:
    """The question itself."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        return (lambda examples: [example.question + _closing(task) for example in examples]), {}

    return learn


def _nearest(task: Task) -> Learn:
    """The answer of the training row nearest by BM25."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        retriever = Retriever(train)

        def rule(examples: Sequence[Example]) -> Sequence[str]:
            found = [retriever.nearest(example, 1) for example in examples]
            return [task.reply(rows[0].expected) + _closing(task) if rows else "" for rows in found]

        return rule, {}

    return learn


def _no_call(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
    """Never to call a function. Nothing is learnt."""
    return (lambda examples: ["No function fits."] * len(examples)), {}
