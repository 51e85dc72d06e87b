"""Plain text: paragraphs or lines to learn as they are, and tagged tokens in columns (CoNLL)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from tunesmith.data.findings import FindingLog
from tunesmith.data.types import Row

_TAG = re.compile(r"O|[BIESLUM]-\S+")
_LOOK_AT = 200
_SURROGATE = re.compile(r"[\udc80-\udcff]")


def looks_tagged(text: str) -> bool:
    """Whether lines are a token and, last, a tag such as `B-PER` or `O`, sentences being apart by empty lines."""
    lines = _head(text)
    cells = [line.split() for line in lines if not _is_aside(line)]
    if len(cells) < 2 or len({len(c) for c in cells}) != 1 or len(cells[0]) < 2:
        return False
    return all(_TAG.fullmatch(c[-1]) for c in cells)


def looks_tabular(text: str) -> bool:
    """Whether nearly all of the first lines have as many cells as the first, and more than one."""
    lines = _head(text)
    for delimiter in (",", ";", "\t"):
        widths = [len(cells) for cells in csv.reader(lines, delimiter=delimiter) if cells]
        if len(widths) > 1 and widths[0] > 1 and widths.count(widths[0]) >= 0.95 * len(widths):
            return True
    return False


def read_tagged(text: str, log: FindingLog, bad_byte: str | None) -> Iterator[Row]:
    """Rows `{"tokens": […], "tags": […]}`, one per sentence, on the line of its first token."""
    width: int | None = None
    for first, lines in _blocks(text):
        cells = [line.split() for line in lines if not _is_aside(line)]
        if not cells:
            log.add("blank_line", first, "nothing but comments")
            continue
        width = width if width is not None else len(cells[0])
        odd = next((n for n, c in enumerate(cells) if len(c) != width or len(c) < 2), None)
        if "\0" in "".join(lines):
            log.leave_out("nul_byte", first)
        elif bad_byte and any(_SURROGATE.search(line) for line in lines):
            log.leave_out("wrong_encoding", first, bad_byte)
        elif odd is not None:
            detail = f"{len(cells[odd])} instead of {max(2, width)} columns beside {cells[odd][0]!r}"
            log.leave_out("broken_tags", first, detail)
        else:
            yield Row({"tokens": [c[0] for c in cells], "tags": [c[-1] for c in cells]}, first, log.source)


def read_text(text: str, log: FindingLog, bad_byte: str | None) -> Iterator[Row]:
    """Rows `{"text": …}`: paragraphs between empty lines where there are any, else lines."""
    paragraphs = re.search(r"\S[^\n\r]*(?:\r\n|\n|\r)[ \t]*(?:\r\n|\n|\r)\s*\S", text) is not None
    blocks = _blocks(text) if paragraphs else ((n, [line]) for n, line in _lines(text) if line.strip())
    for first, lines in blocks:
        body = "".join(lines).strip("\r\n")
        if "\0" in body:
            log.leave_out("nul_byte", first)
        elif bad_byte and _SURROGATE.search(body):
            log.leave_out("wrong_encoding", first, bad_byte)
        else:
            yield Row({"text": body}, first, log.source)


def _is_aside(line: str) -> bool:
    """Comments, and the mark between documents."""
    return line.startswith(("#\t", "# ", "-DOCSTART-")) or not line.strip()


def _head(text: str) -> list[str]:
    head = [line for _, line in zip(range(_LOOK_AT), io.StringIO(text[: 1 << 20], newline=""), strict=False)]
    return [line for line in head if line.strip()]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(io.StringIO(text, newline=""), 1)


def _blocks(text: str) -> Iterator[tuple[int, Sequence[str]]]:
    """Stretches of lines that are not empty, each with the number of its first line."""
    block: list[str] = []
    first = 1
    for number, line in _lines(text):
        if line.strip():
            if not block:
                first = number
            block.append(line)
        elif block:
            yield first, block
            block = []
    if block:
        yield first, block
