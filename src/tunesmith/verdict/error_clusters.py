"""Wrong answers in groups: those that failed in their form first, the others by what their inputs are about.

Inputs become TF-IDF vectors of their words (in any script; without function words of ten languages, single letters,
and words of more than half of the wrong rows), of length 1, and are divided by k-means; the number of groups is the one
with the best mean silhouette (Rousseeuw 1987, Journal of Computational and Applied Mathematics 20:53-65). A group is
named by the words that it has more of than the other wrong rows. The seed is fixed: the same answers give the same
groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tunesmith.data.quality.language import FUNCTION_WORDS
from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.tasks.types import FloatArray
from tunesmith.tasks.words import is_unspaced, words
from tunesmith.verdict.mistakes import common_frame, poor_rows

Kind = Literal["cut", "empty", "unreadable", "repeated", "alike"]

FEWEST = 3
"""Wrong rows that make a group."""
FEWEST_TO_DIVIDE = 12
"""Wrong rows from which on inputs are compared; of fewer every one is better read."""
MOST_GROUPS = 8
NAMING_WORDS = 4
_MOST_COMPARED = 800
"""Wrong rows that groups are made from; of more, those at equal distances, and the others join the nearest group."""
_READ, _READ_IN_ALL = 2_000, 4_000_000
"""Characters of an input that are looked at, and of all inputs together: of many rows, the beginnings."""
_PIECES = (
    "an am any been being could couldn did didn does doesn don get gets got has hasn haven him her its into isn just "
    "let ll me no off out own re should shouldn so some than them then these those too until up us ve very wasn were "
    "weren where while whom why won wouldn yes yet"
)
_SMALL_WORDS = FUNCTION_WORDS | frozenset(_PIECES.split())
"""What a group is not named by: function words, and pieces of English ones that an apostrophe leaves."""
_WEAK = 0.02
"""Mean silhouette (-1 to 1) under which groups are none."""


@dataclass(frozen=True, slots=True)
class ErrorCluster:
    """Wrong answers that have something in common.

    kind: `cut` at the token limit, `empty`, `unreadable`, `repeated` (one answer said far too often), or `alike` in the
        words of their inputs.
    name: what they have in common, such as "about refund, parcel, late".
    words: of `alike`, the words that name it; else empty.
    ids: of all wrong rows in it, the most typical first. Every wrong row is in one cluster at most.
    examples: the first few of these rows.
    right_alike: of `alike`, how many rows are as near to its middle and were answered well; else None.
    """

    kind: Kind
    name: str
    words: tuple[str, ...]
    ids: tuple[str, ...]
    examples: tuple[ScoredAnswer, ...]
    right_alike: int | None = None

    @property
    def size(self) -> int:
        return len(self.ids)


def error_clusters(
    evaluation: Evaluation, metric: str, *, limit: int = MOST_GROUPS, examples: int = 3
) -> tuple[ErrorCluster, ...]:
    """The groups of wrong answers of one candidate, the largest first; none where answers are hardly wrong.

    Of more than `limit` those that failed in their form are taken first. Wrong is a score under 1 where all scores are
    0 or 1, else one in the lowest quarter (`mistakes.poor_rows`).
    """
    poor = list(poor_rows(evaluation, metric))
    found: list[ErrorCluster] = []
    for kind, name, belongs in _FORMS:
        members = [row for row in poor if belongs(row)]
        if len(members) >= FEWEST:
            found.append(_cluster(kind, name, members, examples))
        poor = [row for row in poor if not belongs(row)]
    said = _said_too_often(evaluation, poor)
    for answer in said:
        members = [row for row in poor if row.answer.strip() == answer]
        found.append(_cluster("repeated", f"says “{_shortened(answer)}” too often", members, examples))
    poor = [row for row in poor if row.answer.strip() not in said]
    found += sorted(_alike(evaluation, poor, examples), key=lambda cluster: (-cluster.size, cluster.name))
    return tuple(sorted(found[:limit], key=lambda cluster: (-cluster.size, cluster.name)))


_FORMS: tuple[tuple[Kind, str, Callable[[ScoredAnswer], bool]], ...] = (
    ("cut", "cut at the token limit", lambda row: not row.stopped),
    ("empty", "empty answers", lambda row: not row.answer.strip()),
    ("unreadable", "answers that could not be read", lambda row: row.parsed is None),
)


def _cluster(kind: Kind, name: str, members: Sequence[ScoredAnswer], examples: int) -> ErrorCluster:
    return ErrorCluster(kind, name, (), tuple(row.id for row in members), tuple(members[:examples]))


def _said_too_often(evaluation: Evaluation, poor: Sequence[ScoredAnswer]) -> tuple[str, ...]:
    """Answers given to a fifth of the wrong rows or more, three times as often as they are expected at all."""
    if len(poor) < FEWEST_TO_DIVIDE:
        return ()
    wrong = Counter(row.answer.strip() for row in poor)
    said = Counter(row.answer.strip() for row in evaluation.rows)
    expected = Counter(row.expected.strip() for row in evaluation.rows)
    often = [a for a, count in wrong.items() if count >= max(FEWEST, len(poor) / 5) and said[a] >= 3 * expected[a]]
    return tuple(sorted(often))


def _shortened(text: str, limit: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit].rstrip()}…"


def _alike(evaluation: Evaluation, poor: Sequence[ScoredAnswer], examples: int) -> list[ErrorCluster]:
    """Groups by the words of the inputs; rows that share no word with another wrong row are in none."""
    if len(poor) < FEWEST_TO_DIVIDE:
        return []
    frame = common_frame(evaluation.rows)
    most = min(_READ, _READ_IN_ALL // len(evaluation.rows))

    def told(rows: Sequence[ScoredAnswer]) -> list[list[str]]:
        return [_telling_words(frame.inside(row.prompt)[:most]) for row in rows]

    vectorizer, said = _vectorizer(), told(poor)
    try:
        matrix = vectorizer.fit_transform(said)
    except ValueError:  # scikit-learn's word for an empty vocabulary
        return []
    filled = np.flatnonzero(np.diff(matrix.indptr))
    poor, matrix = [poor[place] for place in filled.tolist()], matrix[filled]
    middles = _middles(matrix)
    if middles is None:
        return []
    good = _answered_well(evaluation, poor)
    likeness = _likeness(matrix, middles)
    of_good = _likeness(vectorizer.transform(told(good)), middles) if good else None
    names, overall = vectorizer.get_feature_names_out(), np.asarray(matrix.mean(axis=0)).ravel()
    group_of, made = likeness.argmax(axis=1), []
    for group in range(len(middles)):
        places = np.flatnonzero(group_of == group)
        if len(places) < FEWEST:
            continue
        excess = np.asarray(matrix[places].mean(axis=0)).ravel() - overall
        naming = tuple(str(names[i]) for i in np.argsort(-excess, kind="stable")[:NAMING_WORDS] if excess[i] > 0)
        near = likeness[places, group]
        typical = [poor[place] for place in places[np.argsort(-near, kind="stable")].tolist()]
        right = 0
        if of_good is not None:
            right = int(((of_good.argmax(axis=1) == group) & (of_good[:, group] >= np.median(near))).sum())
        ids = tuple(row.id for row in typical)
        made.append(ErrorCluster("alike", f"about {', '.join(naming)}", naming, ids, tuple(typical[:examples]), right))
    return made


def _answered_well(evaluation: Evaluation, poor: Sequence[ScoredAnswer]) -> list[ScoredAnswer]:
    wrong = {row.id for row in poor}
    return [row for row in evaluation.rows if row.id not in wrong and row.stopped and row.parsed is not None]


def _vectorizer() -> Any:
    """TF-IDF of texts that are lists of words: rows of length 1, or 0 without a known word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=list, min_df=2, max_df=0.5, sublinear_tf=True, max_features=2_000)


def _telling_words(text: str) -> list[str]:
    """Words that may say what a text is about; single letters only where a script has no spaces."""
    return [word for word in words(text) if (len(word) > 1 or is_unspaced(word)) and word not in _SMALL_WORDS]


def _middles(matrix: Any) -> FloatArray | None:
    """The middles [k, v] of the best division into 2 to `MOST_GROUPS`; None where none is better than no division."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    looked_at = matrix[:: -(-matrix.shape[0] // _MOST_COMPARED)] if matrix.shape[0] else matrix
    different = len({tuple(looked_at[i].indices.tolist()) for i in range(looked_at.shape[0])})
    best, middles = _WEAK, None
    for k in range(2, min(MOST_GROUPS, looked_at.shape[0] // FEWEST, different - 1) + 1):
        fitted = KMeans(k, n_init=2, max_iter=50, random_state=0).fit(looked_at)
        quality = float(silhouette_score(looked_at, fitted.labels_, metric="cosine"))
        if quality > best:
            best, middles = quality, np.asarray(fitted.cluster_centers_, dtype=np.float64)
    return middles


def _likeness(matrix: Any, middles: FloatArray) -> FloatArray:
    """Cosines [n, k] of rows of length 1 with the middles."""
    lengths = np.linalg.norm(middles, axis=1)
    cosines: FloatArray = np.asarray(matrix @ middles.T) / np.where(lengths > 0, lengths, 1.0)
    return cosines
