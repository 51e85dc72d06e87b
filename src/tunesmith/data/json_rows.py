"""Rows of JSONL and of JSON arrays, with the line on which each begins.

A broken line of JSONL costs that line. In an array, reading goes on at the next line that opens an object with the
same indentation as the broken one, which is where every usual writer puts the next row; where rows share a line there
is no such place, and the rest is reported as unread.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import Any

from tunesmith.data.findings import FindingLog
from tunesmith.data.types import Row

MAX_DEPTH = 64
"""Deeper nesting is refused: no row of examples needs it, and recursive code after us would fail on it."""
MAX_BROKEN = 500
"""Broken elements of one array after which the rest is given up: each costs a scan of the text before it."""

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

    def parse(self, text: str, start: int | None = None) -> Parsed:
        """Read one value: the whole of `text`, or the value that begins at `start`."""
        self._duplicate = None
        begin = start or 0
        try:
            value, end = (
                (self._decoder.decode(text), len(text)) if start is None else self._decoder.raw_decode(text, start)
            )
        except json.JSONDecodeError as error:
            problem = f"{error.msg[:1].lower()}{error.msg[1:]} (column {error.colno})"
            return Parsed(None, error.pos, problem, error.lineno)
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


def read_json_lines(text: str, log: FindingLog, bad_byte: str | None, first_line: int = 1) -> tuple[list[Row], int]:
    """Rows of JSONL and the number of lines left out.

    `bad_byte` describes the first byte that is not text, if any; `first_line` is the number of the first line.
    """
    reader, parser = _RowReader(log, bad_byte), JsonParser()
    for number, line in enumerate(io.StringIO(text, newline=""), first_line):
        if not line.strip():
            log.add("blank_line", number)
            continue
        if "\0" in line:
            reader.refuse("nul_byte", number)
        elif bad_byte and _SURROGATE.search(line):
            reader.refuse_bytes(number)
        else:
            reader.take(parser.parse(line.rstrip("\r\n")), line, 0, number)
    return reader.rows, reader.left_out


def read_json_array(text: str, log: FindingLog, bad_byte: str | None) -> tuple[list[Row], int]:
    """Rows of one JSON array and the number of elements left out; see the module for what happens at broken ones."""
    reader, parser = _RowReader(log, bad_byte), JsonParser()
    position = _skip(text, text.index("[") + 1)
    line, counted, broken = 1, 0, 0
    while position < len(text) and text[position] != "]":
        line, counted = line + _newlines(text, counted, position), position
        start = position
        parsed = parser.parse(text, start)
        if parsed.problem:
            elsewhere = f"on line {parsed.line}: " if parsed.line > line else ""
            reader.refuse("broken_json", line, elsewhere + parsed.problem)
        else:
            reader.take(parsed, text, start, line)
            position = _skip(text, parsed.end)
            if text[position : position + 1] in ("]", ""):
                break
            if text[position] == ",":
                position = _skip(text, position + 1)
                if text[position : position + 1] != "]":
                    continue
                log.add("broken_json", line, "a comma after the last element")
                break
            log.add("broken_json", line, f"a comma is missing after this element, found {text[position]!r}")
        broken += 1
        after = _next_row(text, start) if broken <= MAX_BROKEN else None
        if after is None:
            log.add("rest_unread", line, "everything after the broken element")
            return reader.rows, reader.left_out
        position = after
    last = line + _newlines(text, counted, position)
    if position >= len(text):
        log.add("broken_json", last, "the closing ] of the list is missing")
    elif text[position + 1 :].strip():
        log.add("broken_json", last, "text after the closing ] of the list")
    return reader.rows, reader.left_out


class _RowReader:
    """Rows so far; decides for each parsed value whether it is one."""

    def __init__(self, log: FindingLog, bad_byte: str | None) -> None:
        self.rows: list[Row] = []
        self.left_out = 0
        self._log, self._bad_byte = log, bad_byte

    def refuse(self, code: str, line: int, detail: str = "") -> None:
        self._log.add(code, line, detail)
        self.left_out += 1

    def refuse_bytes(self, line: int) -> None:
        self.refuse("wrong_encoding", line, self._bad_byte or "")

    def take(self, parsed: Parsed, text: str, start: int, line: int) -> None:
        """Keep `parsed`, which was read from `text[start:]`, or report it."""
        if parsed.problem:
            self.refuse("broken_json", line, parsed.problem)
        elif not isinstance(parsed.value, dict):
            self.refuse("row_not_object", line, f"found {_kind_of(parsed.value)}")
        elif self._bad_byte and _SURROGATE.search(text, start, parsed.end):
            self.refuse_bytes(line)
        elif _SURROGATE_ESCAPE.search(text, start, parsed.end) and _has_surrogate(parsed.value):
            self.refuse("unpaired_surrogate", line)
        else:
            if parsed.duplicate is not None:
                self._log.add("duplicate_key", line, repr(parsed.duplicate))
            self.rows.append(Row(parsed.value, line, self._log.source))


def _has_surrogate(value: Any) -> bool:
    return _SURROGATE.search(json.dumps(value, ensure_ascii=False)) is not None


def _kind_of(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _skip(text: str, position: int) -> int:
    """The next position that is not white space."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _newlines(text: str, start: int, end: int) -> int:
    """Line ends in `text[start:end]`; neither end may lie inside a CRLF."""
    return text.count("\n", start, end) + text.count("\r", start, end) - text.count("\r\n", start, end)


def _next_row(text: str, start: int) -> int | None:
    """Where the next line begins an object indented like the one at `start`; None if that one does not begin a line.

    Without indentation objects inside a row look like rows, so the first key must be the same too.
    """
    line_start = text.rfind("\n", 0, start) + 1
    indent = text[line_start:start]
    if indent.strip():
        return None
    key = _FIRST_KEY.match(text, start) if not indent else None
    opening = r"(?=\{)" if key is None else r"(?=\{\s*" + re.escape(key.group(1)) + r"\s*:)"
    match = re.compile(r"\n" + re.escape(indent) + opening).search(text, start)
    return match.end() if match else None
