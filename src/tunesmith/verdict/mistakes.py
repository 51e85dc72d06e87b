"""Where a candidate goes wrong: chosen errors, confusions of labels, items missed and invented, spread of scores."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.tasks.extraction import items

UNREADABLE = "(unreadable)"
_RIGHT = 1 - 1e-9
_OPENS = re.compile(r"\n|\|>")
_CLOSES = re.compile(r"\n|<\||<end_of_turn>|</s>")
"""After what an input may begin and before what it may end: a line, or a mark such as `<|end|>`."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A test row that tuned got wrong, with what the best alternative said to it (None without an alternative)."""

    tuned: ScoredAnswer
    other: ScoredAnswer | None
    tuned_score: float
    other_score: float | None

    @property
    def other_right(self) -> bool:
        return self.other_score is not None and self.other_score >= _RIGHT


def choose_mistakes(tuned: Evaluation, other: Evaluation | None, metric: str, limit: int = 20) -> list[Mistake]:
    """Rows that tuned got wrong: half of them rows that the alternative got right, where there are as many.

    Among each half the lowest scores come first, then the order of ids, which are hashes: a fixed draw at random.
    """
    answers = {row.id: row for row in other.rows} if other else {}
    found = []
    for row in tuned.rows:
        if row.scores[metric] < _RIGHT:
            beside = answers.get(row.id)
            found.append(Mistake(row, beside, row.scores[metric], beside.scores[metric] if beside else None))
    found.sort(key=lambda mistake: (mistake.tuned_score, mistake.tuned.id))
    lost = [mistake for mistake in found if mistake.other_right]
    shared = [mistake for mistake in found if not mistake.other_right]
    take_lost = min(len(lost), max(limit // 2, limit - len(shared)))
    return lost[:take_lost] + shared[: limit - take_lost]


def wrong_rows(evaluation: Evaluation, metric: str) -> int:
    """Rows whose score is under 1."""
    return sum(1 for row in evaluation.rows if row.scores[metric] < _RIGHT)


def poor_rows(evaluation: Evaluation, metric: str) -> tuple[ScoredAnswer, ...]:
    """Rows whose answer is wrong: those under 1 where a score is 0 or 1.

    Where scores are graded nearly every row is under 1; then those in the lowest quarter, and under the mean.
    """
    rows, scores = evaluation.rows, [row.scores[metric] for row in evaluation.rows]
    if all(score <= 1 - _RIGHT or score >= _RIGHT for score in scores):
        return tuple(row for row in rows if row.scores[metric] < _RIGHT)
    limit = sorted(scores)[(len(scores) - 1) // 4]
    mean = sum(scores) / len(scores)
    return tuple(row for row in rows if row.scores[metric] <= limit and row.scores[metric] < mean)


@dataclass(frozen=True, slots=True)
class Frame:
    """The text that all prompts begin and end with: shown once instead of at every row.

    It ends and begins at a line or at a mark of a chat template, so that no word of an input is taken for it.
    """

    start: str
    end: str

    def inside(self, prompt: str) -> str:
        """What is particular to one prompt."""
        return prompt.removeprefix(self.start).removesuffix(self.end).strip("\n")


def common_frame(rows: Sequence[ScoredAnswer]) -> Frame:
    """What the prompts have in common around what differs; nothing where there is a single prompt."""
    prompts = [row.prompt for row in rows]
    start = _common_start(prompts)
    start = start[: max((found.end() for found in _OPENS.finditer(start)), default=0)]
    rests = [prompt.removeprefix(start) for prompt in prompts]
    end = _common_start([rest[::-1] for rest in rests])[::-1]
    closing = _CLOSES.search(end)
    end = end[closing.start() :] if closing else ""
    if len(set(prompts)) < 2 or not all(rest.removesuffix(end).strip() for rest in rests):
        return Frame("", "")
    return Frame(start, end)


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of expected (rows) against answered (columns); the last column is what could not be read.

    `labels` are all, or where there are too many those most often confused. `pairs`: (expected, answered, count,
    rows with that expected label) over all labels, most frequent first, right answers left out.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    totals: tuple[int, ...]
    pairs: tuple[tuple[str, str, int, int], ...]
    label_count: int

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.labels, UNREADABLE)


def confusion(evaluation: Evaluation, labels: Sequence[str], metric: str, limit: int = 20) -> Confusion:
    """The confusion matrix of a classification; a right row is counted under its own label however it was spelt."""
    counted: Counter[tuple[str, str]] = Counter()
    for row in evaluation.rows:
        expected = row.expected.strip()
        answered = expected if row.scores[metric] >= _RIGHT else UNREADABLE if row.parsed is None else str(row.parsed)
        counted[expected, answered] += 1
    known = tuple(dict.fromkeys([*labels, *sorted({expected for expected, _ in counted})]))
    totals = Counter[str]()
    wrong = Counter[str]()
    for (expected, answered), count in counted.items():
        totals[expected] += count
        if expected != answered:
            wrong[expected] += count
            wrong[answered] += count
    shown = known
    if len(known) > limit:
        most = sorted(known, key=lambda label: (-wrong[label], label))[:limit]
        shown = tuple(label for label in known if label in set(most))
    pairs = [(e, a, count, totals[e]) for (e, a), count in counted.items() if e != a]
    pairs.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return Confusion(
        labels=shown,
        counts=tuple(tuple(counted[label, column] for column in (*shown, UNREADABLE)) for label in shown),
        totals=tuple(totals[label] for label in shown),
        pairs=tuple(pairs),
        label_count=len(known),
    )


@dataclass(frozen=True, slots=True)
class FieldScore:
    """Items of one field over all rows: found, missed, invented. The field of a list's elements is ""."""

    field: str
    found: int
    missed: int
    invented: int

    @property
    def precision(self) -> float:
        return self.found / (self.found + self.invented) if self.found + self.invented else 0.0

    @property
    def recall(self) -> float:
        return self.found / (self.found + self.missed) if self.found + self.missed else 0.0

    @property
    def f1(self) -> float:
        total = 2 * self.found + self.missed + self.invented
        return 2 * self.found / total if total else 0.0


@dataclass(frozen=True, slots=True)
class ItemScores:
    """Scores per field, all fields together first where there are several; items as (field, text, count)."""

    fields: tuple[FieldScore, ...]
    missed: tuple[tuple[str, str, int], ...]
    invented: tuple[tuple[str, str, int], ...]
    unreadable: int


def item_scores(evaluation: Evaluation, top: int = 12) -> ItemScores:
    """Items found, missed and invented by an extraction, compared as its entity F1 compares them."""
    found: Counter[str] = Counter()
    missed: Counter[tuple[str, str]] = Counter()
    invented: Counter[tuple[str, str]] = Counter()
    for row in evaluation.rows:
        expected = items(json.loads(row.expected))
        answered = items(row.parsed) if row.parsed is not None else Counter()
        for (field, _), count in (expected & answered).items():
            found[field] += count
        missed.update(expected - answered)
        invented.update(answered - expected)
    names = sorted({*found, *(field for field, _ in missed), *(field for field, _ in invented)})
    fields = [FieldScore(name, found[name], _in_field(missed, name), _in_field(invented, name)) for name in names]
    if len(fields) > 1:
        fields.insert(0, FieldScore("all fields", found.total(), missed.total(), invented.total()))
    return ItemScores(
        fields=tuple(fields),
        missed=_most_common(missed, top),
        invented=_most_common(invented, top),
        unreadable=sum(1 for row in evaluation.rows if row.parsed is None),
    )


def _in_field(counted: Counter[tuple[str, str]], name: str) -> int:
    return sum(count for (field, _), count in counted.items() if field == name)


def _most_common(counted: Counter[tuple[str, str]], top: int) -> tuple[tuple[str, str, int], ...]:
    ordered = sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))[:top]
    return tuple((field, text, count) for (field, text), count in ordered)


def score_histogram(evaluation: Evaluation, metric: str, bins: int = 10) -> list[int]:
    """Rows per score interval [0, 1/bins), ..., the last one closed."""
    counts = [0] * bins
    for row in evaluation.rows:
        counts[min(bins - 1, max(0, int(row.scores[metric] * bins + 1e-9)))] += 1
    return counts
