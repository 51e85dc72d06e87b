"""Labels that look wrong: a classifier that never saw the row is sure of another label.

Out-of-fold probabilities of a TF-IDF and logistic-regression classifier are compared with the given labels, ranked by
the margin between the likeliest other label and the given one (as in confident learning: Northcutt, Jiang and Chuang
2021, arXiv 1911.00068, section 3). Rows of a small margin are left out, because neighbouring labels are confused by a
classifier far more often than by people. Confident learning's own threshold, that another label reaches the mean
probability of its class, finds 60 % of banking77's labels where 5 % are flipped, the margin alone 77 % at a precision
of 60 % (`benchmarks/data_findings.py --only labels`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.codes import CODES
from tunesmith.data.duplicates.shingles import Tell, silent
from tunesmith.data.findings import finding
from tunesmith.data.quality.masking import shown
from tunesmith.data.types import Example, Finding

MIN_ROWS = 100
"""Fewer rows teach a classifier too little to doubt anybody."""
FOLDS = 5
MIN_LEAD = 0.35
"""Probability by which another label must lead the given one."""
MIN_ACCURACY = 0.7
"""Share of the given labels that the classifier must guess; one that knows less has no right to doubt."""
_MAX_FIT = 40_000
"""Rows a fold is learnt from at most; more change little and take long."""

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row whose label looks wrong; `lead` is how much more probable `likely` is than `given`."""

    id: str
    line: int
    source: str
    given: str
    likely: str
    lead: float


def suspected_labels(
    examples: Sequence[Example], *, min_lead: float = MIN_LEAD, seed: int = 0, tell: Tell = silent
) -> list[Suspect]:
    """Rows whose label looks wrong, the surest first; rows of labels with fewer than five rows are not judged.

    Nothing depends on the order of the rows. Where words say too little of the label (see `MIN_ACCURACY`) nobody is
    suspected. Takes about ten seconds for 10,000 short rows and 77 labels on one core.
    """
    counts = Counter(example.expected for example in examples)
    judged = sorted((e for e in examples if counts[e.expected] >= FOLDS), key=lambda e: e.id)
    names = sorted({example.expected for example in judged})
    if len(judged) < MIN_ROWS or len(names) < 2:
        return []
    number = {name: place for place, name in enumerate(names)}
    labels = np.array([number[example.expected] for example in judged])
    probabilities = _out_of_fold([_text(e) for e in judged], labels, len(names), _folds(judged, seed), tell)
    if float((probabilities.argmax(axis=1) == labels).mean()) < MIN_ACCURACY:
        return []
    likely, lead = _doubts(probabilities, labels)
    places = np.flatnonzero(lead >= min_lead)
    return [
        Suspect(e.id, e.line, e.source, e.expected, names[likely[place]], float(lead[place]))
        for place in places[np.argsort(-lead[places], kind="stable")]
        if (e := judged[place])
    ]


def noise_findings(examples: Sequence[Example], tell: Tell = silent) -> list[Finding]:
    """One finding per file with the lines of all suspects, and the surest as the example."""
    suspects = suspected_labels(examples, tell=tell)
    questions = {example.id: example.question for example in examples}
    found = []
    for source in dict.fromkeys(suspect.source for suspect in suspects):
        own = [suspect for suspect in suspects if suspect.source == source]
        first = own[0]
        message = (
            f"{CODES['label_noise'].title}: {len(own):,} rows; the surest is line {first.line}, {first.given!r} and "
            f"perhaps {first.likely!r}"
        )
        example = f"{shown(questions[first.id])} → {first.given} ({first.likely}?)"
        found.append(finding("label_noise", message, [s.line for s in own], source=source, example=example))
    return found


def _text(example: Example) -> str:
    return "\n".join(turn.content for turn in example.prompt if turn.role not in ("system", "developer"))


def _folds(examples: Sequence[Example], seed: int) -> npt.NDArray[np.int64]:
    """The fold of each row: rows of a label in turn, by a seeded hash, equal inputs in one fold of theirs."""
    keyed = [hashlib.sha256(f"{seed}:{_text(example)}".encode()).hexdigest() for example in examples]
    folds = np.zeros(len(examples), dtype=np.int64)
    turn: Counter[str] = Counter()
    fold_of: dict[str, int] = {}
    for place in sorted(range(len(examples)), key=keyed.__getitem__):
        label = examples[place].expected
        if keyed[place] not in fold_of:
            fold_of[keyed[place]] = turn[label] % FOLDS
            turn[label] += 1
        folds[place] = fold_of[keyed[place]]
    return folds


def _out_of_fold(
    texts: Sequence[str], labels: npt.NDArray[np.int64], classes: int, folds: npt.NDArray[np.int64], tell: Tell
) -> Probabilities:
    """Probabilities `[rows, classes]` by classifiers that learnt from the other folds; 0 for labels they never met."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    features: Any = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, token_pattern=r"(?u)\b\w+\b")
    try:
        matrix = features.fit_transform(texts)
    except ValueError:  # no word comes twice: there is nothing to learn from
        return np.zeros((len(texts), classes))
    made = np.zeros((len(texts), classes))
    draw = np.random.default_rng(0)
    for fold in range(FOLDS):
        train, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(train) > _MAX_FIT:
            train = np.sort(draw.choice(train, _MAX_FIT, replace=False))
        if len(held_out) and len(set(labels[train].tolist())) > 1:
            model: Any = LogisticRegression(C=10.0, max_iter=60, tol=1e-3)
            model.fit(matrix[train], labels[train])
            made[np.ix_(held_out, model.classes_)] = model.predict_proba(matrix[held_out])
        tell("doubting labels", fold + 1, FOLDS)
    return made


def _doubts(probabilities: Probabilities, labels: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Probabilities]:
    """For every row the likeliest of the other labels, and its lead over the given one."""
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -1.0
    likely = others.argmax(axis=1)
    return likely, others[rows, likely] - probabilities[rows, labels]
