"""Rows of JSONL and of JSON arrays, with the line on which each begins.

A broken line of JSONL costs that line. In an array, reading goes on at the next line that opens an object with the
same indentation as the broken one, which is where every usual writer puts the next row; where rows share a line there
is no such place, and the rest is reported as unread.

An array is read through a window: the parser is given the text that is there, and where a value may only seem broken
because the text ends, more is read and the value parsed again. So memory holds a few pieces of the file, and an element
of more than `MAX_ELEMENT` characters, which is nearly always one that is never closed, counts as broken.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.data.findings import FindingLog
from tunesmith.data.sources.decoding import TextStream, line_ends
from tunesmith.data.types import Row

MAX_DEPTH = 64
"""Deeper nesting is refused: no row of examples needs it, and recursive code after us would fail on it."""
MAX_BROKEN = 500
"""Broken elements of one array after which the rest is given up: it is no array of rows."""
MAX_ELEMENT = 64 << 20
"""Characters of one element of an array."""
_MARGIN = 16
"""Characters before the end of a text within which an error may be that of a value cut off: `-Infinity`, `\\u00e9`."""
_KEEP = 1 << 20
"""Characters behind the place that is read before they are let go."""
_TAIL = 4_096
"""Characters kept where the next row is looked for: line end, indentation, brace and first key."""

_FIRST_KEY = re.compile(r'\{\s*("[^"\n]*")\s*:')
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A JSON value and where it ends, or the `problem` that left none; `line` is where in the text the problem is."""

    value: Any
    end: int
    problem: str = ""
    line: int = 1
    duplicate: str | None = None


class JsonParser:
    """Strict JSON: `NaN` and `Infinity`, which Python would accept, are refused; keys given twice are noticed."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=_refuse)
        self._duplicate: str | None = None

    def parse(self, text: str, start: int | None = None, origin: tuple[int, int] = (0, 0)) -> Parsed:
        """Read one value: the whole of `text`, or the value that begins at `start`.

        `origin` says how many lines lie before `text`, and how many characters of its first line.
        """
        self._duplicate = None
        begin = start or 0
        try:
            value, end = (
                (self._decoder.decode(text), len(text)) if start is None else self._decoder.raw_decode(text, start)
            )
        except json.JSONDecodeError as error:
            column = error.colno + (origin[1] if error.lineno == 1 else 0)
            problem = f"{error.msg[:1].lower()}{error.msg[1:]} (column {column})"
            return Parsed(None, error.pos, problem, error.lineno + origin[0])
        except RecursionError:
            return Parsed(None, begin, "nested too deeply")
        except ValueError as error:  # NaN, Infinity, or a number longer than Python converts
            return Parsed(None, begin, str(error).split(";")[0])
        if _may_be_deep(text, begin, end) and _depth(value) > MAX_DEPTH:
            return Parsed(None, begin, f"nested more than {MAX_DEPTH} levels deep")
        return Parsed(value, end, duplicate=self._duplicate)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            self._duplicate = next(name for name in names if names.count(name) > 1)
        return made


def parse_cell(text: str) -> Parsed:
    """The value of a cell that holds JSON text: as strict as a row, and with no half of a surrogate pair in it."""
    parsed = JsonParser().parse(text)
    if not parsed.problem and _SURROGATE_ESCAPE.search(text) and _has_surrogate(parsed.value):
        return Parsed(None, parsed.end, "half of a surrogate pair")
    return parsed


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _may_be_deep(text: str, start: int, end: int) -> bool:
    """Whether the text has enough brackets to be too deep; cheap, so that depth is measured only when needed."""
    return text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def read_json_lines(text: str, log: FindingLog, bad_byte: str | None, first_line: int = 1) -> list[Row]:
    """Rows of JSONL; lines that are none are left out and noted.

    `bad_byte` describes the first byte that is not text, if any; `first_line` is the number of the first line.
    """
    parser = JsonParser()
    rows: list[Row] = []
    for number, line in enumerate(io.StringIO(text, newline=""), first_line):
        if not line.strip():
            log.add("blank_line", number)
        elif "\0" in line:
            log.leave_out("nul_byte", number)
        elif bad_byte and _SURROGATE.search(line):
            log.leave_out("wrong_encoding", number, bad_byte)
        elif (row := _row(parser.parse(line.rstrip("\r\n")), line, 0, number, log, bad_byte)) is not None:
            rows.append(row)
    return rows


def read_json_array(stream: TextStream, log: FindingLog) -> Iterator[Row]:
    """Rows of one JSON array; elements that are none are left out and noted, see the module for broken ones."""
    window, parser = _Window(stream), JsonParser()
    position = window.skip(window.find("[") + 1)
    line, broken = 1, 0
    while not window.at_end(position) and window.text[position] != "]":
        position = start = window.release(position) if position > _KEEP else position
        line = window.line_at(start)
        parsed = _element(window, parser, start)
        if parsed.problem:
            elsewhere = f"on line {parsed.line}: " if parsed.line > line else ""
            log.leave_out("broken_json", line, elsewhere + parsed.problem)
        else:
            row = _row(parsed, window.text, start, line, log, stream.bad_byte)
            if row is not None:
                yield row
            position = window.skip(parsed.end)
            if window.at_end(position) or window.text[position] == "]":
                break
            if window.text[position] == ",":
                position = window.skip(position + 1)
                if window.at_end(position) or window.text[position] != "]":
                    continue
                log.add("broken_json", line, "a comma after the last element")
                break
            log.add("broken_json", line, f"a comma is missing after this element, found {window.text[position]!r}")
        broken += 1
        after = _next_row(window, start) if broken <= MAX_BROKEN else None
        if after is None:
            log.add("rest_unread", line, "everything after the broken element")
            return
        position = after
    last = window.line_at(position)
    if window.at_end(position):
        log.add("broken_json", last, "the closing ] of the list is missing")
    elif not window.blank_from(position + 1):
        log.add("broken_json", last, "text after the closing ] of the list")


def _row(parsed: Parsed, text: str, start: int, line: int, log: FindingLog, bad_byte: str | None) -> Row | None:
    """The row that `parsed`, which was read from `text[start:]`, is; or None, and why not is noted."""
    if parsed.problem:
        log.leave_out("broken_json", line, parsed.problem)
    elif not isinstance(parsed.value, dict):
        log.leave_out("row_not_object", line, f"found {_kind_of(parsed.value)}")
    elif bad_byte and _SURROGATE.search(text, start, parsed.end):
        log.leave_out("wrong_encoding", line, bad_byte)
    elif _SURROGATE_ESCAPE.search(text, start, parsed.end) and _has_surrogate(parsed.value):
        log.leave_out("unpaired_surrogate", line)
    else:
        if parsed.duplicate is not None:
            log.add("duplicate_key", line, repr(parsed.duplicate))
        return Row(parsed.value, line, log.source)
    return None


def _has_surrogate(value: Any) -> bool:
    return _SURROGATE.search(json.dumps(value, ensure_ascii=False)) is not None


def _kind_of(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


class _Window:
    """The part of a stream's text that is being read: it grows at its end, and what is read is let go."""

    def __init__(self, stream: TextStream) -> None:
        self.text = ""
        self.ended = False
        self.mid_line = False
        """Whether the text begins within a line that holds more than white space before it."""
        self.origin = (0, 0)
        """Lines before the text, by LF, and characters of its first line before it."""
        self._pieces = iter(stream)
        self._line, self._counted = 1, 0

    def more(self) -> bool:
        """Read on: at least as much again as there is, so that whatever is tried again costs little."""
        parts, wanted = [self.text], len(self.text)
        while wanted >= 0:
            piece = next(self._pieces, None)
            if piece is None:
                self.ended = True
                break
            parts.append(piece)
            wanted -= len(piece)
        self.text = "".join(parts)
        return len(parts) > 1

    def find(self, character: str) -> int:
        """Where a character comes first, reading on until it is there; the length of the text if it never is."""
        while character not in self.text and self.more():
            pass
        place = self.text.find(character)
        return place if place >= 0 else len(self.text)

    def skip(self, position: int) -> int:
        """The next position that is not white space."""
        while True:
            match = _SPACE.match(self.text, position)
            position = match.end() if match else position
            if position < len(self.text) or not self.more():
                return position

    def at_end(self, position: int) -> bool:
        """Whether there is nothing at a position that `skip` gave."""
        return position >= len(self.text)

    def blank_from(self, position: int) -> bool:
        """Whether there is nothing but space from a position on; the window is of no use after it."""
        return not self.text[position:].strip() and not any(piece.strip() for piece in self._pieces)

    def line_at(self, position: int) -> int:
        """The number of the line of a position; positions never go back."""
        if position > self._counted:
            self._line += line_ends(self.text[self._counted : position])
            self._counted = position
        return self._line

    def release(self, position: int) -> int:
        """Let go of what lies before a position, but for the beginning of a line that holds nothing before it; returns
        where the position is then.
        """
        cut = self.text.rfind("\n", 0, position) + 1
        self.mid_line = (not cut and self.mid_line) or bool(self.text[cut:position].strip())
        if self.mid_line:
            cut = position - (self.text[position - 1 : position + 1] == "\r\n")
        self.line_at(cut)
        lines = self.text.count("\n", 0, cut)
        before = cut - (self.text.rfind("\n", 0, cut) + 1)
        self.origin = (self.origin[0] + lines, before if lines else self.origin[1] + before)
        self._counted -= cut
        self.text = self.text[cut:]
        return position - cut


def _element(window: _Window, parser: JsonParser, start: int) -> Parsed:
    """The value at `start`, for which the window reads on as long as its text may only be cut off."""
    while True:
        parsed = parser.parse(window.text, start, window.origin)
        there = len(window.text)
        if parsed.problem:
            cut_off = parsed.end >= there - _MARGIN or parsed.problem.startswith("unterminated string")
        else:  # a number, or a word of JSON, may go on
            cut_off = parsed.end == there and window.text[-1] not in '}]"'
        if not cut_off or window.ended:
            return parsed
        if there - start > MAX_ELEMENT:
            return Parsed(None, start, f"it does not end within {MAX_ELEMENT:,} characters")
        window.more()


def _next_row(window: _Window, start: int) -> int | None:
    """Where the next line begins an object indented like the one at `start`; None if that one does not begin a line.

    Without indentation objects inside a row look like rows, so the first key must be the same too.
    """
    line_start = window.text.rfind("\n", 0, start) + 1
    indent = window.text[line_start:start]
    if indent.strip() or (not line_start and window.mid_line):
        return None
    key = _FIRST_KEY.match(window.text, start) if not indent else None
    opening = r"(?=\{)" if key is None else r"(?=\{\s*" + re.escape(key.group(1)) + r"\s*:)"
    pattern = re.compile(r"\n" + re.escape(indent) + opening)
    position = start
    while (match := pattern.search(window.text, position)) is None:
        if window.ended:
            return None
        position = window.release(max(position, len(window.text) - _TAIL))
        window.more()
    return match.end()
