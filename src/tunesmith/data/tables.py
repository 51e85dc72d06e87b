"""Rows of CSV and TSV, by the standard library's parser in its strict mode.

Strict, because a lenient parser turns one open quotation mark into a single cell that swallows every row behind it.
A record that breaks the rules is reported and reading starts again on the line after its first.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.findings import FindingLog
from tunesmith.data.types import Row
from tunesmith.errors import DataError

_SURROGATE = re.compile(r"[\udc80-\udcff]")
_SNIFF_LINES = 200
_MAX_REREAD = 20
"""Lines may be read again this many times the file's length before the rest is given up (a bound on hostile files)."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a delimited file. `left_out` counts reported records."""

    rows: list[Row]
    columns: tuple[str, ...]
    delimiter: str
    left_out: int


@dataclass(frozen=True, slots=True)
class _Record:
    """One record: its first and last line (1-based), and its cells or what is wrong with it."""

    first: int
    last: int
    cells: list[str]
    problem: str = ""


def read_table(text: str, log: FindingLog, bad_byte: str | None, *, prefer_tab: bool) -> Table:
    """Read a delimited text whose first record is the header.

    The delimiter (comma, semicolon, tab) is the one under which the header has several cells and the next records
    agree with it. Raises `DataError` if the header itself cannot be read.
    """
    lines = list(io.StringIO(text, newline=""))
    with _cells_of_any_length(len(text)):
        delimiter = _delimiter(lines, prefer_tab)
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
        if delimiter == "\t" and '"' in text and _quotes_are_text(lines):
            quoting = csv.QUOTE_NONE
            log.add("quotes_literal", next(i for i, line in enumerate(lines, 1) if '"' in line))
        return _rows(_records(lines, delimiter, quoting), delimiter, log, bad_byte, nul="\0" in text)


@contextmanager
def _cells_of_any_length(length: int) -> Iterator[None]:
    """Raise the parser's process-wide limit on the length of a cell, and put it back."""
    before = csv.field_size_limit(max(csv.field_size_limit(), length + 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(lines: Sequence[str], delimiter: str, quoting: Literal[0, 3]) -> Iterator[_Record]:
    """All records in order, blank ones included (no cells); broken ones carry a problem."""
    position, reread = 0, 0
    while position < len(lines):
        reader = csv.reader(
            map(lines.__getitem__, range(position, len(lines))), delimiter=delimiter, quoting=quoting, strict=True
        )
        start = position
        try:
            for cells in reader:
                end = position + reader.line_num
                yield _Record(start + 1, end, cells)
                start = end
            return
        except csv.Error as error:
            yield _Record(start + 1, start + 1, [], _in_words(error))
            reread += position + reader.line_num - start
        position = start + 1
        if reread > _MAX_REREAD * len(lines) + 10_000:
            for number in range(position, len(lines)):
                if lines[number].strip():
                    yield _Record(number + 1, number + 1, [], "not read, as too many records before it are broken")
            return


def _in_words(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quotation mark is opened and never closed"
    if "expected after" in text:
        return "something other than the delimiter follows a closing quotation mark"
    return text


def _rows(records: Iterator[_Record], delimiter: str, log: FindingLog, bad_byte: str | None, *, nul: bool) -> Table:
    columns = _header(records, log, bad_byte)
    rows: list[Row] = []
    left_out = 0
    width = len(columns)
    for record in records:
        cells, line = record.cells, record.first
        if not cells and not record.problem:
            log.add("blank_line", line)
            continue
        if record.problem:
            log.add("broken_csv", line, record.problem)
        elif len(cells) != width:
            span = f", and the record runs on to line {record.last}" if record.last > record.first else ""
            code = "too_few_cells" if len(cells) < width else "too_many_cells"
            log.add(code, line, f"{len(cells)} instead of {width}{span}")
        elif nul and any("\0" in cell for cell in cells):
            log.add("nul_byte", line)
        elif bad_byte and any(_SURROGATE.search(cell) for cell in cells):
            log.add("wrong_encoding", line, bad_byte)
        else:
            rows.append(Row(dict(zip(columns, cells, strict=True)), line, log.source))
            continue
        left_out += 1
    return Table(rows, columns, delimiter, left_out)


def _header(records: Iterator[_Record], log: FindingLog, bad_byte: str | None) -> tuple[str, ...]:
    """Column names: stripped, never empty, never twice."""
    record = next(records)
    while not record.cells and not record.problem:
        log.add("blank_line", record.first)
        record = next(records)
    where = f"{log.source}, line {record.first}"
    if record.problem:
        raise DataError(f"the header cannot be read: {record.problem}", where=where, expected="one name per column")
    if any(_SURROGATE.search(cell) for cell in record.cells):
        raise DataError(
            f"the header is not UTF-8: {bad_byte}",
            where=where,
            expected="UTF-8",
            fix="save the file as UTF-8, or try data.encoding: latin-1 or cp1252",
        )
    if any("\0" in cell for cell in record.cells):
        raise DataError("the header holds NUL characters", where=where, expected="a text file", fix="export it again")
    names: list[str] = []
    for number, cell in enumerate(record.cells, 1):
        name = cell.strip()
        if not name:
            name = f"column_{number}"
            log.add("unnamed_column", record.first, f"column {number} is called {name!r} here")
        if name in names:
            fresh = next(f"{name}_{n}" for n in range(2, len(record.cells) + 2) if f"{name}_{n}" not in names)
            log.add("duplicate_column", record.first, f"the second {name!r} is called {fresh!r} here", field=name)
            name = fresh
        names.append(name)
    return tuple(names)


def _delimiter(lines: Sequence[str], prefer_tab: bool) -> str:
    """The delimiter under which most of the first records are as wide as a header of several cells."""
    candidates = ("\t", ",", ";") if prefer_tab else (",", ";", "\t")
    best, best_score = candidates[0], (0.0, 0)
    head = lines[:_SNIFF_LINES]
    for candidate in candidates:
        widths = [len(cells) for cells in csv.reader(head, delimiter=candidate) if cells]
        if widths and widths[0] > 1:
            score = (sum(width == widths[0] for width in widths) / len(widths), widths[0])
            if score > best_score:
                best, best_score = candidate, score
    return best


def _quotes_are_text(lines: Sequence[str]) -> bool:
    """Whether a tab-separated text is broken when quotation marks quote, and flawless when they do not."""
    quoted = _records(lines, "\t", csv.QUOTE_MINIMAL)
    if not any(record.problem for record in quoted):
        return False
    widths = {len(record.cells) for record in _records(lines, "\t", csv.QUOTE_NONE) if record.cells}
    return len(widths) == 1
