"""Rows of two texts and a label, for objectives that compare texts.

`data.columns: {prompt: text_a, second: text_b, answer: label}` names the columns. All rows are looked at before
anything is refused: what cannot be used is named in findings with its lines, as for other rows.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.checks import check_examples
from tunesmith.data.findings import FindingLog, in_order, shortened
from tunesmith.data.reading import ReadResult, read_rows
from tunesmith.data.splits import make_splits
from tunesmith.data.template import cell_text
from tunesmith.data.types import Example, Finding, Message, Row, Splits
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Data, Split

_TRUTH = {"true": 1.0, "false": 0.0}
_MANY_LABELS = 20
"""With more distinct labels they are a scale, which cannot be stratified."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts and what they are to each other; `id` is a hash of the content, distinct for equal rows.

    What a label means is up to the objective: the contrastive loss takes 0 for pairs that belong together.
    """

    id: str
    first: str
    second: str
    label: float
    line: int
    source: str

    def as_example(self) -> Example:
        """The pair as splits and checks see it: both texts, in an order of their own, ask for the label."""
        texts = sorted((self.first, self.second))
        messages = (Message("user", texts[0]), Message("user", texts[1]), Message("assistant", f"{self.label:g}"))
        return Example(self.id, messages, f"{self.label:g}", self.line, self.source)


@dataclass(frozen=True, slots=True)
class PairResult:
    """The pairs of one file. `rows` counts all records: those that became pairs and those in findings."""

    pairs: list[Pair]
    findings: list[Finding]
    rows: int

    @property
    def left_out(self) -> int:
        """Rows that are only in findings."""
        return self.rows - len(self.pairs)


@dataclass(frozen=True, slots=True)
class PairSplits:
    """The three parts; `hashes` freezes each by the ids in it."""

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]
    hashes: Mapping[str, str]
    explanation: str


def load_pairs(spec: Data, path: str | Path) -> PairResult:
    """Read `path` (the train, validation or test file of `spec`) into pairs.

    Raises `RecipeError` where the recipe does not say which columns are what, `DataError` where the file cannot be read
    or has no such column.
    """
    columns = _columns(spec)
    return pairs_from(read_rows(path, encoding=spec.encoding), columns, str(path))


def pairs_from(read: ReadResult, columns: tuple[str, str, str], where: str) -> PairResult:
    """The same for rows already read; `columns` are those of both texts and of the label."""
    if read.rows:
        _require(columns, read.columns, where)
    log = FindingLog(where)
    bad_labels: dict[int, str] = {}
    seen: Counter[str] = Counter()
    pairs = [p for row in read.rows if (p := _pair(row, columns, log, bad_labels, seen)) is not None]
    findings = [*read.findings, *log.findings(), *_about_labels(bad_labels, columns[2], where)]
    return PairResult(pairs, in_order(findings), len(read.rows) + read.left_out)


def check_pairs(pairs: Sequence[Pair], splits: PairSplits | None = None) -> list[Finding]:
    """What is wrong with the pairs as a whole: copies, the same texts with two labels, one label only, too few; with
    `splits` also pairs that are in two parts.

    Texts in the other order are the same pair.
    """
    parts = None
    if splits is not None:
        train, validation, test = (
            tuple(p.as_example() for p in part) for part in (splits.train, splits.validation, splits.test)
        )
        parts = Splits(train, validation, test, splits.hashes, splits.explanation)
    return check_examples([p.as_example() for p in pairs], task_type=_task(pairs), splits=parts)


def split_pairs(
    train: Sequence[Pair],
    validation: Sequence[Pair] | None,
    test: Sequence[Pair] | None,
    split: Split,
    *,
    max_rows: int | None = None,
) -> PairSplits:
    """Divide the pairs of the training file; see `make_splits`. A pair of the same texts is never in two parts; a text
    may be, with other partners.

    Few distinct labels are stratified. Raises `DataError` where a part would be empty.
    """
    files = [part for part in (train, validation, test) if part is not None]
    by_id = {(p.source, p.id): p for part in files for p in part}
    made = make_splits(
        [p.as_example() for p in train],
        None if validation is None else [p.as_example() for p in validation],
        None if test is None else [p.as_example() for p in test],
        split,
        task_type=_task(train),
        max_rows=max_rows,
    )
    parts = [tuple(by_id[e.source, e.id] for e in part) for part in (made.train, made.validation, made.test)]
    return PairSplits(parts[0], parts[1], parts[2], made.hashes, made.explanation)


def _columns(spec: Data) -> tuple[str, str, str]:
    given = {
        "prompt": spec.columns.prompt,
        "second": spec.columns.second,
        "answer": spec.columns.answer,
    }
    missing = [name for name, column in given.items() if not isinstance(column, str)]
    if missing:
        raise RecipeError(
            f"pairs need a column for {', '.join(missing)}",
            where="data.columns",
            expected="{prompt: first text, second: second text, answer: label}",
        )
    others = [name for name in ("template", "span_types", "system") if getattr(spec, name) is not None]
    if spec.format not in ("auto", "columns"):
        others.append(f"format: {spec.format}")
    if others:
        raise RecipeError(
            f"data.columns.second and data.{', data.'.join(others)} contradict each other",
            where="data",
            expected="pairs of plain texts, by data.columns alone",
            fix="remove the other, or data.columns.second",
        )
    return str(given["prompt"]), str(given["second"]), str(given["answer"])


def _require(wanted: Sequence[str], there: Sequence[str], where: str) -> None:
    if len(set(wanted)) < len(wanted):
        raise RecipeError("one column is named twice", where="data.columns", expected="three different columns")
    missing = [name for name in wanted if name not in there]
    if missing:
        near = [m for name in missing for m in difflib.get_close_matches(name, there, n=1)]
        raise DataError(
            f"no row has {' or '.join(map(repr, missing))}",
            where=where,
            expected=f"columns among: {', '.join(there)}",
            fix=f"is {' and '.join(map(repr, near))} meant? correct data.columns" if near else "correct data.columns",
        )


def _pair(
    row: Row, columns: tuple[str, str, str], log: FindingLog, bad_labels: dict[int, str], seen: Counter[str]
) -> Pair | None:
    """One row, or None with every reason noted."""
    missing = [name for name in columns if name not in row.values]
    for name in missing:
        log.add("missing_column", row.line, repr(name), field=name)
    first, second = (cell_text(row.values.get(name)) for name in columns[:2])
    empty = [name for name, text in zip(columns, (first, second), strict=False) if not text.strip()]
    for name in empty:
        if name not in missing:
            log.add("empty_prompt", row.line, field=name)
    label = None
    if columns[2] not in missing:
        value = row.values[columns[2]]
        label = parse_label(value)
        if label is None and not cell_text(value).strip():
            log.add("empty_answer", row.line, field=columns[2])
        elif label is None:
            bad_labels[row.line] = cell_text(value)
    if missing or empty or label is None:
        return None
    key = hashlib.sha256(json.dumps([sorted((first, second)), label], ensure_ascii=False).encode()).hexdigest()[:16]
    seen[key] += 1
    count = seen[key]
    return Pair(key if count == 1 else f"{key}-{count}", first, second, label, row.line, row.source)


def parse_label(value: Any) -> float | None:
    """A finite number, true (1) or false (0), also as text; None for everything else."""
    if isinstance(value, str):
        text = value.strip()
        if text.casefold() in _TRUTH:
            return _TRUTH[text.casefold()]
        if "_" in text:  # Python reads 1_0 as ten
            return None
        try:
            value = float(text)
        except ValueError:
            return None
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _about_labels(bad: Mapping[int, str], column: str, where: str) -> list[Finding]:
    if not bad:
        return []
    first = min(bad)
    shown = f"{column!r} is not a number: line {first}, {bad[first][:40]!r}"
    more = f"; lines {shortened(sorted(bad))}" if len(bad) > 1 else ""
    return [
        Finding(
            code="label_not_number",
            severity="error",
            message=shown + more,
            fix="write labels as numbers, or as true and false",
            count=len(bad),
            lines=tuple(sorted(bad)),
            field=column,
            source=where,
        )
    ]


def _task(pairs: Sequence[Pair]) -> str:
    """What splits and checks take the labels for: classes, or a scale."""
    return "classification" if len({p.label for p in pairs}) <= _MANY_LABELS else "generation"
