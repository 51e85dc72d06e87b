"""Trivial baselines: what a model must beat before it is worth anything.

Each is one function that learns from the training rows, chooses on the validation rows where there is something to
choose, and returns a rule from rows to answer texts. The tuned model gets its rows the same way: weights come from
training rows only, validation rows only choose, and nothing is fitted again on both. Answers are texts and go through
the same parser as those of a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from tunesmith.evaluation.types import Answer
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.extraction import Extraction
from tunesmith.tasks.generation import Generation
from tunesmith.tasks.types import Task

Rule = Callable[[Sequence[Example]], Sequence[str]]
Fit = Callable[[Sequence[Example], Sequence[Example]], tuple[Rule, Mapping[str, Any]]]
"""(training rows, validation rows) -> (rule, facts worth showing)."""


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
    learn: Fit

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
    if isinstance(task, Classification):
        return (
            TrivialBaseline("trivial_majority", _majority("")),
            TrivialBaseline("trivial_tfidf_lr", tfidf_logistic_regression(task)),
        )
    if isinstance(task, Extraction) and task.form == "object":
        return (
            TrivialBaseline("trivial_majority", object_majority(task)),
            TrivialBaseline("trivial_dictionary", object_dictionary(task)),
        )
    if isinstance(task, Extraction) and task.elements == "text":
        return (
            TrivialBaseline("trivial_copy", copied_lines),
            TrivialBaseline("trivial_amount_unit", amount_and_unit),
            TrivialBaseline("trivial_dictionary", list_dictionary(task)),
        )
    if isinstance(task, Extraction):
        return (TrivialBaseline("trivial_majority", _majority("")),)
    if isinstance(task, Generation):
        return (
            TrivialBaseline("trivial_majority", _majority(task.closing)),
            TrivialBaseline("trivial_copy", _copy(task.closing)),
            TrivialBaseline("trivial_nearest", _nearest(task.closing)),
        )
    return ()


def _majority(closing: str) -> Fit:
    """The most frequent training answer to everything; of equally frequent ones the first in sorted order."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> tuple[Rule, Mapping[str, Any]]:
        counts = Counter(example.expected for example in train)
        answer, count = min(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return (lambda examples: [answer + closing] * len(examples)), {"training_share": count / len(train)}

    return learn


def _copy(closing: str) -> Fit:
    """The question itself."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> tuple[Rule, Mapping[str, Any]]:
        return (lambda examples: [example.question + closing for example in examples]), {}

    return learn


def _nearest(closing: str) -> Fit:
    """The answer of the training row nearest by BM25."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> tuple[Rule, Mapping[str, Any]]:
        retriever = Retriever(train)

        def rule(examples: Sequence[Example]) -> Sequence[str]:
            found = [retriever.nearest(example, 1) for example in examples]
            return [rows[0].expected + closing if rows else "" for rows in found]

        return rule, {}

    return learn
