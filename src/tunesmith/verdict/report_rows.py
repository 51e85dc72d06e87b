"""All test rows for the error browser: what every candidate said, in a form small enough to lie in the page.

Texts are kept once and referred to by place, since labels and short answers repeat. A page must stay small enough to be
mailed, so there is a bound: texts are shortened and answers of further candidates left out before any row is. Which
rows stay is fixed by the data alone: wrong ones first, of the others a draw by the order of their ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.verdict import wording
from tunesmith.verdict.error_clusters import ErrorCluster
from tunesmith.verdict.mistakes import UNREADABLE, common_frame
from tunesmith.verdict.noise_suspects import NoiseSuspect
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_subject import Subject, is_binary, value_of

MOST_BYTES = 1_900_000
"""Of the data in the page, so that the page stays under 3 MB with all else that is on it."""
_LEVELS = ((4000, 12), (1200, 6), (500, 3))
"""Characters of a text and number of candidates, tried in this order until all rows fit."""
_SHARE_OF_WRONG = 0.7
"""Where rows have to be left out, the share of the bytes that wrong ones may take."""
_RIGHT = 1 - 1e-9
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are looked at together, such as a slice or two labels that are confused; `ids` of all of its rows."""

    kind: str
    name: str
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Rows:
    """What the browser works on: `script` is JSON that may stand in a script element as it is.

    `places` of groups by (kind, name), for links from tables; only groups of which a row is in the page.
    """

    script: str
    sentence: str
    places: Mapping[tuple[str, str], int]


def rows_of(report: ReportData, subject: Subject, groups: Iterable[Group], most_bytes: int = MOST_BYTES) -> Rows | None:
    """The subject's rows beside what the other candidates said to them; None where nothing was evaluated."""
    main = subject.evaluation
    if main is None or not main.rows:
        return None
    ordered = _candidates(report, subject)
    for limit, count in _LEVELS:
        packed = _Packed(main, ordered[:count], report.verdict.metric, limit)
        if packed.fits(most_bytes):
            break
    groups = list(groups)
    known, places, sizes = _listed(groups, {row.id: place for place, row in enumerate(packed.rows)})
    content = {
        "candidates": [wording.candidate_name(evaluation.candidate) for evaluation in packed.candidates],
        "binary": is_binary(main, report.verdict.metric),
        "metric": wording.metric_name(report.verdict.metric),
        "total": len(main.rows),
        "texts": packed.texts,
        "rows": packed.lines,
        "groups": [[g.kind, g.name, found, size] for g, found, size in zip(known, places, sizes, strict=True)],
    }
    links = {(group.kind, group.name): place for place, group in enumerate(known)}
    return Rows(_embedded(content), _sentence(packed, main, ordered, report.verdict.metric), links)


def groups_of(
    report: ReportData,
    subject: Subject,
    confused: Sequence[tuple[str, str, int, int]],
    clusters: Sequence[ErrorCluster],
    suspects: Sequence[NoiseSuspect],
) -> list[Group]:
    """Slices, confused labels, groups of errors and labels in doubt."""
    main = subject.evaluation
    found = [Group("Slices", name, list(ids)) for name, ids in report.slices.items()]
    for expected, answered, _, _ in confused if main is not None else ():
        assert main is not None
        ids = [row.id for row in main.rows if _took_for(row, expected, answered, report.verdict.metric)]
        found.append(Group("Confused labels", f"{expected} → {answered}", ids))
    found += [Group("Groups of errors", cluster.name, cluster.ids) for cluster in clusters]
    if suspects:
        found.append(Group("Labels in doubt", "all of them", [suspect.id for suspect in suspects]))
    return found


def _took_for(row: ScoredAnswer, expected: str, answered: str, metric: str) -> bool:
    said = UNREADABLE if row.parsed is None else str(row.parsed)
    return row.scores[metric] < _RIGHT and row.expected.strip() == expected and said == answered


def _candidates(report: ReportData, subject: Subject) -> list[Evaluation]:
    """The subject, its other, then the rest by their value."""
    rest = [e for e in report.evaluations if e.candidate not in (subject.name, subject.other_name)]
    values = {e.candidate: value_of(report, e.candidate, report.verdict.metric) for e in rest}
    rest.sort(key=lambda e: -(v.value if (v := values[e.candidate]) is not None else -1.0))
    return [*subject.both, *rest]


@dataclass
class _Packed:
    """Rows as [number, id, question, expected, [answer, score, flags, sure of each candidate]], texts by their place.

    Flags: 1 unreadable, 2 cut at the token limit. Sure: the highest probability, only where labels were scored. A
    candidate that did not answer a row has null in its place, and a score that is no number is null.
    """

    main: Evaluation
    candidates: Sequence[Evaluation]
    metric: str
    limit: int
    texts: list[str] = field(default_factory=list)
    lines: list[list[Any]] = field(default_factory=list)
    rows: list[ScoredAnswer] = field(default_factory=list)
    _place: dict[str, int] = field(default_factory=dict)
    _bytes: int = 0

    def fits(self, most: int) -> bool:
        """Pack as many rows as there is room for; whether that is all of them."""
        answers = [{row.id: row for row in evaluation.rows} for evaluation in self.candidates]
        frame = common_frame(self.main.rows)
        numbered = list(enumerate(self.main.rows, start=1))
        wrong = [one for one in numbered if not _is_right(one[1], self.metric)]
        wrong.sort(key=lambda one: (_rounded(one[1].scores[self.metric]) or 0.0, one[1].id))
        right = sorted((one for one in numbered if _is_right(one[1], self.metric)), key=lambda one: one[1].id)
        taken: list[tuple[int, ScoredAnswer, list[Any]]] = []
        for part, room in ((wrong, int(most * _SHARE_OF_WRONG)), (right, most)):
            for number, row in part:
                if self._bytes > room:
                    break
                taken.append((number, row, self._line(number, row, frame.inside(row.prompt), answers)))
        taken.sort(key=lambda one: one[0])
        self.rows, self.lines = [row for _, row, _ in taken], [line for _, _, line in taken]
        return len(taken) == len(numbered)

    def _line(
        self, number: int, row: ScoredAnswer, question: str, answers: Sequence[Mapping[str, ScoredAnswer]]
    ) -> list[Any]:
        said: list[Any] = []
        for by_id in answers:
            one = by_id.get(row.id)
            if one is None:
                said.append(None)
                continue
            flags = (one.parsed is None) + 2 * (not one.stopped)
            sure = [_rounded(max(one.probabilities.values()))] if one.probabilities else []
            said.append([self._text(one.answer), _rounded(one.scores[self.metric]), flags, *sure])
        self._bytes += 24 + 14 * len(said)
        return [number, self._text(row.id), self._text(question), self._text(row.expected), said]

    def _text(self, text: str) -> int:
        """The place of a text, shortened to the limit."""
        if len(text) > self.limit:
            text = f"{text[: self.limit]} … ({wording.count(len(text) - self.limit)} more characters)"
        place = self._place.get(text)
        if place is None:
            place = self._place[text] = len(self.texts)
            self.texts.append(text)
            self._bytes += len(_embedded(text).encode("utf-8", "replace")) + 1
        return place


def _is_right(row: ScoredAnswer, metric: str) -> bool:
    """Entirely right; a score that is no number is not."""
    return row.scores[metric] >= _RIGHT


def _rounded(score: float) -> float | None:
    """As it is kept in the page; None for what is no number, which JSON cannot hold."""
    return round(float(score), 3) if math.isfinite(score) else None


def _listed(groups: Sequence[Group], place: Mapping[str, int]) -> tuple[list[Group], list[list[int]], list[int]]:
    """Groups of which a row is in the page, the places of these rows, and how many rows each has in all."""
    found = [(group, [place[i] for i in group.ids if i in place]) for group in groups]
    known = [(group, places) for group, places in found if places]
    return [g for g, _ in known], [places for _, places in known], [len(group.ids) for group, _ in known]


def _embedded(value: Any) -> str:
    """JSON without anything that could end the element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char, escaped in _ESCAPED.items():
        text = text.replace(char, escaped)
    return text


def _sentence(packed: _Packed, main: Evaluation, ordered: Sequence[Evaluation], metric: str) -> str:
    total, here = len(main.rows), len(packed.rows)
    if here == total:
        sentence = f"All {wording.count(total)} test rows are here."
    else:
        wrong = sum(1 for row in main.rows if not _is_right(row, metric))
        kept = sum(1 for row in packed.rows if not _is_right(row, metric))
        which = "all" if kept == wrong else f"{wording.count(kept)} of"
        sentence = (
            f"{wording.count(here)} of {wording.count(total)} test rows are here, so that the page stays small: "
            f"{which} {wording.count(wrong)} that are not entirely right, and of the others a fixed draw. "
            f"{wording.count(total - here)} are left out; they are in the run's evaluation folder."
        )
    left = len(ordered) - len(packed.candidates)
    if left:
        sentence += f" Answers of {left} further candidates are left out."
    return sentence
