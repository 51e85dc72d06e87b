"""`check --fix`: a cleaned copy of a file of rows, and a log of every change; the original stays as it is.

Only what can be mended without judgement is mended unless more is asked for: exact and invisible copies go, broken
encodings are decoded, invisible characters removed, labels that differ in case or spaces take their usual spelling,
and rows that cannot be used at all are left out. `ON_REQUEST` lists what else can be done. A copy of a table stays a
table; everything else is written as JSONL.
"""

from __future__ import annotations

import csv
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tunesmith.data.duplicates.exact import copies_of, lookalikes_of
from tunesmith.data.duplicates.near import Groups, find_near_duplicates
from tunesmith.data.quality.labels import label_spellings
from tunesmith.data.quality.masking import SENSITIVE, mask, masked, sensitive_hits
from tunesmith.data.quality.text import says_nothing, without_mojibake, without_odd_characters
from tunesmith.data.reading import ReadResult
from tunesmith.data.types import Example, Finding, Row
from tunesmith.errors import DataError, RecipeError
from tunesmith.runs.atomic import staged_file

ALWAYS = ("mojibake", "odd_characters", "label_variants", "duplicate_row", "duplicate_normalised")
"""What is mended whenever mending is asked for, in this order."""
ON_REQUEST = ("html_remnants", *SENSITIVE, "near_empty_answer", "near_duplicate")
"""What is mended only where it is named."""
UNUSABLE = "unusable"
"""Code in the log of a row that no finding explains better."""

_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>")
_BREAK = re.compile(r"<(?:br|/p|/div|/li|/tr|/h[1-6])\s*/?>", re.I)


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the log. `after` is None and `action` `dropped` for a row that is left out."""

    row: int
    code: str
    action: str
    field: str | None = None
    before: str | None = None
    after: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The line as a JSON object; a field that says nothing is left out."""
        named = {"field": self.field, "before": self.before, "after": self.after}
        return {"row": self.row, "code": self.code, "action": self.action, **{k: v for k, v in named.items() if v}}


@dataclass(frozen=True, slots=True)
class Fixed:
    """Where copy and log are, and what was done: rows in the copy, dropped rows, changed texts, both by code."""

    original: Path
    cleaned: Path
    log: Path
    rows: int
    dropped: int
    changed: int
    by_code: Mapping[str, int]


@dataclass(slots=True)
class _Work:
    """Rows by place as they will be written, the place of each example's row, and the log so far.

    Places and not lines: a JSON array may hold all its rows on one line.
    """

    lines: list[int]
    rows: dict[int, Mapping[str, Any]]
    place_of: list[int]
    changes: list[Change] = field(default_factory=list)

    def drop(self, place: int, code: str, before: str | None = None) -> None:
        if self.rows.pop(place, None) is not None:
            self.changes.append(Change(self.lines[place], code, "dropped", before=before))


def fix_rows(
    path: Path,
    read: ReadResult,
    examples: Sequence[Example],
    findings: Sequence[Finding],
    *,
    task_type: str,
    also: Collection[str] = (),
) -> Fixed:
    """Write `NAME.cleaned.jsonl` (or .csv, .tsv) and `NAME.fixes.jsonl` beside `path`.

    `examples` and `findings` are what was made of `read`, of rows of every kind. Raises `RecipeError` for a code that
    cannot be mended and `DataError` where a file of these names exists: nothing is ever overwritten.
    """
    unknown = [code for code in also if code not in (*ALWAYS, *ON_REQUEST)]
    if unknown:
        raise RecipeError(
            f"{', '.join(unknown)} cannot be mended by itself", where="--fix-also", expected=", ".join(ON_REQUEST)
        )
    cleaned, log = _targets(path, read.kind)
    rows = {place: row.values for place, row in enumerate(read.rows)}
    work = _Work([row.line for row in read.rows], rows, _places(read.rows, examples))
    _leave_out(read.rows, findings, work)
    for code in (*ALWAYS[:3], *ON_REQUEST[:-1]):  # copies are looked for among what remains
        if code in ALWAYS or code in also:
            _change_texts(code, examples, task_type, work)
    _drop_copies(examples, also, work)
    work.changes.sort(key=lambda change: change.row)
    with staged_file(cleaned) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        _write(stream, [work.rows[place] for place in sorted(work.rows)], read)
    with staged_file(log) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{json.dumps(change.to_dict(), ensure_ascii=False)}\n" for change in work.changes)
    dropped = sum(change.action == "dropped" for change in work.changes)
    by_code = Counter(change.code for change in work.changes)
    return Fixed(path, cleaned, log, len(work.rows), dropped, len(work.changes) - dropped, dict(by_code))


def _targets(path: Path, kind: str) -> tuple[Path, Path]:
    stem = path.name.split(".")[0] or "rows"
    made = (
        path.with_name(f"{stem}.cleaned.{kind if kind in ('csv', 'tsv') else 'jsonl'}"),
        path.with_name(f"{stem}.fixes.jsonl"),
    )
    for target in made:
        if target.exists():
            raise DataError(
                "the file exists already", where=str(target), fix="move or remove it; nothing is overwritten"
            )
    return made


def _places(rows: Sequence[Row], examples: Sequence[Example]) -> list[int]:
    """The place of the row that each example was made of; examples are in the order of their rows."""
    found, place = [], 0
    for example in examples:
        while not (rows[place].line == example.line and rows[place].values == example.values):
            place += 1
        found.append(place)
        place += 1
    return found


def _leave_out(rows: Sequence[Row], findings: Sequence[Finding], work: _Work) -> None:
    """Rows that made no example; also those that could not even be read, of which only the line is known."""
    used = set(work.place_of)
    reasons: dict[int, str] = {}
    for finding in sorted(findings, key=lambda f: f.severity != "error"):
        if finding.severity != "info":
            for line in finding.lines:
                reasons.setdefault(line, finding.code)
    for place, row in enumerate(rows):
        if place not in used:
            text = masked(json.dumps(row.values, ensure_ascii=False, default=str))
            work.drop(place, reasons.get(row.line, UNUSABLE), text)
    readable = set(work.lines)
    for finding in findings:
        if finding.severity == "error":
            for line in finding.lines:
                if line not in readable:
                    readable.add(line)
                    work.changes.append(Change(line, finding.code, "dropped"))


def _change_texts(code: str, examples: Sequence[Example], task_type: str, work: _Work) -> None:
    spellings: Mapping[str, str] = {}
    if code == "label_variants" and task_type == "classification":
        spellings = label_spellings(Counter(example.expected for example in examples))
    for place, example in zip(work.place_of, examples, strict=True):
        if place not in work.rows:
            continue
        if code == "near_empty_answer":
            if example.kind == "answer" and says_nothing(example.expected):
                work.drop(place, code, masked(example.expected))
            continue
        changed, places = _mapped(work.rows[place], _change_for(code, example, spellings))
        work.rows[place] = changed
        for where, before, after in places:
            shown = None if code in SENSITIVE else masked(before)
            work.changes.append(Change(example.line, code, "changed", where, shown, masked(after)))


def _change_for(code: str, example: Example, spellings: Mapping[str, str]) -> Callable[[str], str]:
    """What a code does to each text of a row."""
    if code == "label_variants":
        return _replacing(example.expected, spellings.get(example.expected, example.expected))
    if code in SENSITIVE:
        return _masking(code)
    return {"mojibake": without_mojibake, "odd_characters": without_odd_characters, "html_remnants": _plain}[code]


def _replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda text: new if text == old else text


def _masking(code: str) -> Callable[[str], str]:
    return lambda text: mask(text, [hit for hit in sensitive_hits(text) if hit.code == code])


def _plain(text: str) -> str:
    """Without tags, line breaks in place of those that break lines, entities decoded."""
    return html.unescape(_TAG.sub("", _BREAK.sub("\n", text)))


def _mapped(
    values: Mapping[str, Any], change: Callable[[str], str]
) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """The row with `change` applied to every text in it, and the places where that made a difference."""
    places: list[tuple[str, str, str]] = []

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, str):
            made = change(value)
            if made != value:
                places.append((path, value, made))
            return made
        if isinstance(value, Mapping):
            return {key: walk(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner, f"{path}[{number}]") for number, inner in enumerate(value)]
        return value

    return walk(values, ""), places


def _drop_copies(examples: Sequence[Example], also: Collection[str], work: _Work) -> None:
    """Of every group of copies the first row stays."""
    for code, groups in (("duplicate_row", copies_of(examples)), ("duplicate_normalised", lookalikes_of(examples))):
        for group in groups:
            for number in group[1:]:
                work.drop(work.place_of[number], code, f"a copy of line {examples[group[0]].line}")
    if "near_duplicate" in also:
        for number, first in _near_groups(examples):
            work.drop(work.place_of[number], "near_duplicate", f"nearly the same as line {examples[first].line}")


def _near_groups(examples: Sequence[Example]) -> Iterator[tuple[int, int]]:
    """Places of rows that are nearly the same as an earlier one, each with the first of its group."""
    groups = Groups(len(examples))
    pairs = find_near_duplicates(examples).pairs
    for pair in pairs:
        groups.join(pair.first, pair.second)
    for place in sorted({place for pair in pairs for place in (pair.first, pair.second)}):
        if groups.find(place) != place:
            yield place, groups.find(place)


def _write(stream: TextIO, rows: Sequence[Mapping[str, Any]], read: ReadResult) -> None:
    if read.kind in ("csv", "tsv"):
        writer = csv.DictWriter(
            stream, read.columns, delimiter="\t" if read.kind == "tsv" else ",", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    else:
        stream.writelines(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)
