"""Rows of CSV and TSV, by the standard library's parser in its strict mode.

Strict, because a lenient parser turns one open quotation mark into a single cell that swallows every row behind it.
A record that breaks the rules is reported and reading starts again on the line after its first.

The text is read as a stream: memory holds the lines from the record that is being read to the farthest that was looked
at, and a cell ends at the latest after `MAX_CELL` characters.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from tunesmith.data.findings import FindingLog
from tunesmith.data.sources.decoding import TextStream
from tunesmith.data.types import Row
from tunesmith.errors import DataError

MAX_CELL = 64 << 20
"""Characters of a cell; a longer one is nearly always a quotation mark that is never closed."""
_SURROGATE = re.compile(r"[\udc80-\udcff]")
_SNIFF_LINES = 200
_MAX_REREAD, _FREE_REREAD = 20, 200_000
"""Lines may be read again this many times as often as there were lines so far, and so many besides, before the rest is
given up: a bound on hostile files."""


@dataclass(frozen=True, slots=True)
class Table:
    """A delimited text: what its header says, and its rows as they are read."""

    columns: tuple[str, ...]
    delimiter: str
    rows: Iterator[Row]


@dataclass(frozen=True, slots=True)
class _Record:
    """One record: its first and last line (1-based), and its cells or what is wrong with it."""

    first: int
    last: int
    cells: list[str]
    problem: str = ""


def open_table(stream: TextStream, log: FindingLog, *, prefer_tab: bool) -> Table:
    """Read the header of a delimited text, and make ready to read its rows; records that are none are noted.

    The delimiter (comma, semicolon, tab) is the one under which the header has several cells and the next records
    agree with it. Raises `DataError` if the header itself cannot be read.
    """
    lines = _Lines(_lines(stream))
    delimiter = _delimiter(lines.first(_SNIFF_LINES), prefer_tab)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    if delimiter == "\t" and (first_quote := _literal_quotes(stream)) is not None:
        quoting = csv.QUOTE_NONE
        log.add("quotes_literal", first_quote)
    records = _records(lines, delimiter, quoting)
    columns = _header(records, log, stream)
    return Table(columns, delimiter, _rows(records, columns, log, stream))


def _lines(stream: TextStream) -> Iterator[str]:
    for text, _ in stream.blocks():
        yield from io.StringIO(text, newline="")


class _Lines:
    """Lines that can be read again from any place that was not let go."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.seen = 0
        """How many there were so far."""
        self._rest = lines
        self._kept: list[str] = []

    def first(self, count: int) -> Sequence[str]:
        """The first lines, which stay to be read."""
        self._keep(islice(self._rest, count - len(self._kept)))
        return self._kept[:count]

    def since(self, number: int) -> Iterator[str]:
        """Lines from a number on (0-based)."""
        while True:
            place = number - (self.seen - len(self._kept))
            if place == len(self._kept) and not self._keep(islice(self._rest, 1)):
                return
            yield self._kept[place]
            number += 1

    def release(self, number: int) -> None:
        """Let go of the lines before a number, now and then."""
        behind = number - (self.seen - len(self._kept))
        if behind >= 1_000 or behind == len(self._kept):
            del self._kept[:behind]

    def _keep(self, lines: Iterator[str]) -> bool:
        before = len(self._kept)
        self._kept += lines
        self.seen += len(self._kept) - before
        return len(self._kept) > before


@contextmanager
def _cells_up_to(length: int) -> Iterator[None]:
    """Set the parser's process-wide limit on the length of a cell, and put it back."""
    before = csv.field_size_limit(length)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _next(reader: Any) -> list[str] | None:
    """The next record's cells; the limit holds for this call only, not between two."""
    with _cells_up_to(MAX_CELL):
        return next(reader, None)


def _records(lines: _Lines, delimiter: str, quoting: Literal[0, 3]) -> Iterator[_Record]:
    """All records in order, blank ones included (no cells); broken ones carry a problem."""
    position, reread = 0, 0
    while True:
        reader = csv.reader(lines.since(position), delimiter=delimiter, quoting=quoting, strict=True)
        start = position
        try:
            while (cells := _next(reader)) is not None:
                end = position + reader.line_num
                yield _Record(start + 1, end, cells)
                lines.release(end)
                start = end
            return
        except csv.Error as error:
            yield _Record(start + 1, start + 1, [], _in_words(error))
            reread += position + reader.line_num - start
        position = start + 1
        lines.release(position)
        if reread > _MAX_REREAD * lines.seen + _FREE_REREAD:
            for number, line in enumerate(lines.since(position), position + 1):
                if line.strip():
                    yield _Record(number, number, [], "not read, as too many records before it are broken")
                lines.release(number)
            return


def _in_words(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quotation mark is opened and never closed"
    if "expected after" in text:
        return "something other than the delimiter follows a closing quotation mark"
    if "field limit" in text:
        return f"a cell is longer than {MAX_CELL:,} characters, or a quotation mark is opened and never closed"
    return text


def _rows(records: Iterator[_Record], columns: tuple[str, ...], log: FindingLog, stream: TextStream) -> Iterator[Row]:
    width = len(columns)
    for record in records:
        line, cells = record.first, record.cells
        if not cells and not record.problem:
            log.add("blank_line", line)
        elif record.problem:
            log.leave_out("broken_csv", line, record.problem)
        elif len(cells) != width:
            span = f", and the record runs on to line {record.last}" if record.last > record.first else ""
            code = "too_few_cells" if len(cells) < width else "too_many_cells"
            log.leave_out(code, line, f"{len(cells)} instead of {width}{span}")
        elif stream.has_nul and any("\0" in cell for cell in cells):
            log.leave_out("nul_byte", line)
        elif stream.bad_byte and any(_SURROGATE.search(cell) for cell in cells):
            log.leave_out("wrong_encoding", line, stream.bad_byte)
        else:
            yield Row(dict(zip(columns, cells, strict=True)), line, log.source)


def _header(records: Iterator[_Record], log: FindingLog, stream: TextStream) -> tuple[str, ...]:
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
            f"the header is not UTF-8: {stream.bad_byte}",
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


def _delimiter(head: Sequence[str], prefer_tab: bool) -> str:
    """The delimiter under which most of the first records are as wide as a header of several cells."""
    candidates = ("\t", ",", ";") if prefer_tab else (",", ";", "\t")
    best, best_score = candidates[0], (0.0, 0)
    for candidate in candidates:
        with _cells_up_to(sum(map(len, head)) + 1):
            widths = [len(cells) for cells in csv.reader(head, delimiter=candidate) if cells]
        if widths and widths[0] > 1:
            score = (sum(width == widths[0] for width in widths) / len(widths), widths[0])
            if score > best_score:
                best, best_score = candidate, score
    return best


def _literal_quotes(stream: TextStream) -> int | None:
    """The first line with a quotation mark of a tab-separated text that is broken when quotation marks quote, and
    flawless when they do not. The file is read for it once or twice more, but nothing of it is kept.
    """
    first = next((number for number, line in enumerate(_lines(stream.again()), 1) if '"' in line), None)
    if first is None:
        return None
    quoted = _records(_Lines(_lines(stream.again())), "\t", csv.QUOTE_MINIMAL)
    if not any(record.problem for record in quoted):
        return None
    plain = _records(_Lines(_lines(stream.again())), "\t", csv.QUOTE_NONE)
    return first if len({len(record.cells) for record in plain if record.cells}) == 1 else None
