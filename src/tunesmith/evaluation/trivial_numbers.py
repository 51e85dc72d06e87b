"""Trivial numbers: the mean or median, a number of the input, a linear model of words, one operation on numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from tunesmith.data.types import Example
from tunesmith.evaluation.trivial_classification import text_features
from tunesmith.evaluation.trivial_rules import Learn, Learned, Rule
from tunesmith.tasks.maths import NUMBER, Maths, as_number
from tunesmith.tasks.metrics import quick_score
from tunesmith.tasks.regression import Regression

Numbers = Sequence[Fraction]

ALPHAS = (0.03, 0.3, 3.0, 30.0)
"""Regularisation strengths tried on validation rows."""
DEFAULT_ALPHA = 0.3
"""Taken, and said in the notes, where there is no validation row to choose on."""


def mean_number(task: Regression) -> Learn:
    """The mean of the training answers, as the task reads them, to everything."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        mean = f"{math.fsum(map(task.target, train)) / len(train):.6g}"
        return (lambda examples: [mean] * len(examples)), {"mean": float(mean)}

    return learn


def median_number(task: Regression) -> Learn:
    """The median of the training answers to everything: the best constant where absolute errors count."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        median = f"{statistics.median(map(task.target, train)):.6g}"
        return (lambda examples: [median] * len(examples)), {"median": float(median)}

    return learn


PLACES: Mapping[str, Callable[[Numbers], Fraction]] = {
    "first": lambda n: n[0],
    "last": lambda n: n[-1],
    "largest": max,
    "smallest": min,
}
"""Which of the numbers in an input is the answer."""


def number_in_input(task: Regression) -> Learn:
    """One of the numbers in the input, by its place or size: the one that scores best on training rows.

    The median training answer where an input holds no number.
    """

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        usual = f"{statistics.median(map(task.target, train)):.6g}"

        def rule_for(name: str) -> Rule:
            return lambda examples: [_taken(PLACES[name], example.question, usual) for example in examples]

        metric = next(iter(task.metrics))
        scores = {name: quick_score(task, rule_for(name)(train), train)[metric] for name in PLACES}
        best = max(PLACES, key=lambda name: scores[name])
        return rule_for(best), {"number": best, "training_score": scores[best]}

    return learn


def _taken(place: Callable[[Numbers], Fraction], question: str, usual: str) -> str:
    found = [number for text in NUMBER.findall(question) if (number := as_number(text)) is not None]
    return f"{float(place(found)):.12g}" if found else usual


def tfidf_ridge(task: Regression) -> Learn:
    """Ridge regression on TF-IDF of words and characters; alpha has the best score on validation rows."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        from sklearn.linear_model import Ridge

        texts = [example.question for example in train]
        features = text_features(texts)
        inputs, values = features.transform(texts), [task.target(example) for example in train]

        def rule_for(alpha: float) -> Rule:
            model = Ridge(alpha=alpha).fit(inputs, values)

            def rule(examples: Sequence[Example]) -> Sequence[str]:
                found = model.predict(features.transform([example.question for example in examples]))
                return [f"{value:.6g}" for value in found]

            return rule

        if not validation:
            return rule_for(DEFAULT_ALPHA), {"alpha": DEFAULT_ALPHA, "alpha_chosen_on": None}
        rules = {alpha: rule_for(alpha) for alpha in ALPHAS}
        metric = next(iter(task.metrics))
        scores = {alpha: quick_score(task, rule(validation), validation)[metric] for alpha, rule in rules.items()}
        best = min(ALPHAS, key=lambda alpha: (-scores[alpha], alpha))
        return rules[best], {"alpha": best, "alpha_chosen_on": {str(a): score for a, score in scores.items()}}

    return learn


FORMULAS: Mapping[str, Callable[[Numbers], Fraction]] = {
    "first + second": lambda n: n[0] + n[1],
    "first - second": lambda n: n[0] - n[1],
    "second - first": lambda n: n[1] - n[0],
    "|first - second|": lambda n: abs(n[0] - n[1]),
    "first * second": lambda n: n[0] * n[1],
    "first / second": lambda n: n[0] / n[1],
    "second / first": lambda n: n[1] / n[0],
    "|second last - last|": lambda n: abs(n[-2] - n[-1]),
    "second last + last": lambda n: n[-2] + n[-1],
    "largest - smallest": lambda n: max(n) - min(n),
    "sum": lambda n: sum(n, Fraction(0)),
    "last": lambda n: n[-1],
}
"""Of the numbers in a question, at least two, in their order."""


def arithmetic(task: Maths) -> Learn:
    """The one formula of `FORMULAS` that is right most often on training rows, on the numbers of each question."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        def rule_for(name: str) -> Rule:
            return lambda examples: [_computed(FORMULAS[name], example.question) + task.closing for example in examples]

        shares = {name: quick_score(task, rule_for(name)(train), train)["accuracy"] for name in FORMULAS}
        best = min(FORMULAS, key=lambda name: (-shares[name], list(FORMULAS).index(name)))
        return rule_for(best), {"formula": best, "training_share": shares[best]}

    return learn


def _computed(formula: Callable[[Numbers], Fraction], question: str) -> str:
    """The formula's value, or the question's only number; "" without a number or where it divides by 0."""
    found = [as_number(text) for text in NUMBER.findall(question)]
    numbers = [number for number in found if number is not None]
    if len(numbers) < 2:
        return str(numbers[0]) if numbers else ""
    try:
        return str(formula(numbers))
    except ZeroDivisionError:
        return ""
