"""The classifier every language model should be compared with: TF-IDF and logistic regression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunesmith.data.types import Example
from tunesmith.evaluation.trivial_rules import Learn, Learned
from tunesmith.tasks.classification import Classification

C_GRID = (1.0, 4.0, 16.0, 64.0)
"""Inverse regularisation strengths tried on validation rows; TF-IDF rows have length 1, so small C underfits."""

DEFAULT_C = 16.0
"""Taken, and said in the notes, where there is no validation row to choose on."""

_WORD = re.compile(r"\w")


def tfidf_logistic_regression(
    task: Classification,
) -> Learn:
    """Words 1-2 and characters 3-5 (within words), sublinear TF-IDF, multinomial logistic regression.

    C is the one with the best validation accuracy, ties to the smaller. The model that answers is the one fitted on
    the training rows alone, as the tuned model is.
    """

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        labels = [task.target(example) for example in train]
        if len(set(labels)) == 1:
            return (lambda examples: [labels[0]] * len(examples)), {"labels": 1}
        features = text_features([example.question for example in train])
        inputs = features.transform([example.question for example in train])
        if validation:
            asked = features.transform([example.question for example in validation])
            wanted = [task.target(example) for example in validation]
            fitted = {c: _classifier(c).fit(inputs, labels) for c in C_GRID}
            scores = {c: float((model.predict(asked) == wanted).mean()) for c, model in fitted.items()}
            best = min(C_GRID, key=lambda c: (-scores[c], c))
            model = fitted[best]
            facts = {"c": best, "c_chosen_on": {str(c): score for c, score in scores.items()}}
        else:
            model = _classifier(DEFAULT_C).fit(inputs, labels)
            facts = {"c": DEFAULT_C, "c_chosen_on": None}

        def rule(examples: Sequence[Example]) -> Sequence[str]:
            return [str(label) for label in model.predict(features.transform([e.question for e in examples]))]

        return rule, {**facts, "features": int(inputs.shape[1])}

    return learn


def text_features(texts: Sequence[str]) -> Any:
    """Words 1-2 and characters 3-5, sublinear TF-IDF: a scikit-learn transformer fitted to `texts`.

    Of characters alone where no text has a word, as of emoji.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    word = TfidfVectorizer(
        analyzer="word", ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, dtype=np.float32
    )
    char = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, dtype=np.float32)
    parts = [("words", word), ("characters", char)]
    return FeatureUnion(parts if any(map(_WORD.search, texts)) else parts[1:]).fit(texts)


def _classifier(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=1000)
