"""Trivial labels beside those of a plain classification: sets of labels, ordered labels, tags of tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from tunesmith.data.types import Example
from tunesmith.evaluation.trivial_classification import text_features
from tunesmith.evaluation.trivial_rules import Learn, Learned, Rule
from tunesmith.tasks.metrics import quick_score
from tunesmith.tasks.multi_label import MultiLabel
from tunesmith.tasks.ordinal import Ordinal
from tunesmith.tasks.token_classification import TokenClassification

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Probabilities from which a label is answered, tried on validation rows."""
DEFAULT_THRESHOLD = 0.3
"""Taken, and said in the notes, where there is no validation row to choose on."""


def median_label(task: Ordinal) -> Learn:
    """The median label of the training rows to everything: the best constant where distance counts."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        ranks = sorted(task.labels.index(task.target(example)) for example in train)
        label = task.labels[ranks[(len(ranks) - 1) // 2]]
        return (lambda examples: [label] * len(examples)), {"label": label}

    return learn


def tfidf_label_sets(task: MultiLabel) -> Learn:
    """One logistic regression per label on TF-IDF; labels from a probability on that is chosen on validation rows."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        texts = [example.question for example in train]
        features = text_features(texts)
        inputs = features.transform(texts)
        sets = [set(task.target(example)) for example in train]
        wanted = {label: [label in one for one in sets] for label in task.labels}
        models = {
            label: LogisticRegression(C=16.0, max_iter=1000).fit(inputs, there)
            for label, there in wanted.items()
            if any(there) and not all(there)
        }
        always = {label for label, there in wanted.items() if all(there)}

        def rule_for(threshold: float) -> Rule:
            def rule(examples: Sequence[Example]) -> Sequence[str]:
                asked = features.transform([example.question for example in examples])
                sure = {label: model.predict_proba(asked)[:, 1] >= threshold for label, model in models.items()}
                sure |= {label: np.ones(len(examples), dtype=bool) for label in always}
                known = [label for label in task.labels if label in sure]
                chosen = [[label for label in known if sure[label][i]] for i in range(len(examples))]
                return [written(task, labels) for labels in chosen]

            return rule

        if not validation:
            return rule_for(DEFAULT_THRESHOLD), {"threshold": DEFAULT_THRESHOLD, "threshold_chosen_on": None}
        scores = {t: quick_score(task, rule_for(t)(validation), validation)["micro_f1"] for t in THRESHOLDS}
        best = min(THRESHOLDS, key=lambda t: (-scores[t], t))
        return rule_for(best), {"threshold": best, "threshold_chosen_on": {str(t): s for t, s in scores.items()}}

    return learn


def written(task: MultiLabel, labels: Sequence[str]) -> str:
    """Labels as the task's answers have them."""
    if task.written == "list":
        return json.dumps(labels, ensure_ascii=False)
    return task.separator.join(labels) if labels else "none"


def most_frequent_tag(task: TokenClassification) -> Learn:
    """The most frequent tag for every token; there are as many tokens as words in the input."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        tag = _most_frequent(tag for example in train for tag in task.target(example))
        return (lambda examples: [" ".join([tag] * len(example.question.split())) for example in examples]), {
            "tag": tag
        }

    return learn


def tag_dictionary(task: TokenClassification) -> Learn:
    """Each word's most frequent tag in training rows, the most frequent tag of all for unknown words.

    Only training rows with as many words as tags are looked at; their share is in the notes.
    """

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        counts: dict[str, Counter[str]] = {}
        aligned = 0
        for example in train:
            tokens, tags = example.question.split(), task.target(example)
            if len(tokens) != len(tags):
                continue
            aligned += 1
            for token, tag in zip(tokens, tags, strict=True):
                counts.setdefault(token.casefold(), Counter())[tag] += 1
        usual = _most_frequent(tag for example in train for tag in task.target(example))
        known = {token: _most_frequent(tags.elements()) for token, tags in counts.items()}

        def tagged(example: Example) -> str:
            return " ".join(known.get(token.casefold(), usual) for token in example.question.split())

        return (lambda examples: [tagged(e) for e in examples]), {"words": len(known), "aligned": aligned / len(train)}

    return learn


def _most_frequent(names: Iterable[str]) -> str:
    """The most frequent of names, of equally frequent ones the first in sorted order."""
    return min(Counter(names).items(), key=lambda pair: (-pair[1], pair[0]))[0]
