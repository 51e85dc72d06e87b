"""From a file to rows: open, decode, recognise the kind, and hand the text to the reader of that kind.

Nothing is lost in silence: every record of the file is either a row or named in a finding with its line, and one
broken record does not stop the rest from being read. The whole text is held in memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.data.findings import FindingLog
from tunesmith.data.json_rows import JsonParser, read_json_array, read_json_lines
from tunesmith.data.tables import read_table
from tunesmith.data.types import Finding, Row
from tunesmith.errors import DataError

Kind = Literal["jsonl", "json", "csv", "tsv"]

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SHAPES = "JSONL, a JSON array, CSV or TSV"
_BINARY = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it first",
    b"PK\x03\x04": "a zip archive or an office document; unpack it, or export the sheet as CSV",
    b"PAR1": "a Parquet file; export it as JSONL or CSV",
    b"ARROW1": "an Arrow file; export it as JSONL or CSV",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"%PDF": "a PDF document; rows must be text",
}


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a file held. `left_out` counts the records that are in `findings` instead of `rows`."""

    rows: list[Row]
    findings: list[Finding]
    kind: Kind
    encoding: str
    columns: tuple[str, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Text, the encoding it was read with, and a note on its first bad byte (then bad bytes are lone surrogates)."""

    text: str
    encoding: str
    bad_byte: str | None = None


def read_rows(path: Path, *, encoding: str = "auto") -> ReadResult:
    """Read a JSONL, JSON, CSV or TSV file.

    The kind is recognised by content first and name second. `encoding="auto"` takes UTF-8 with or without byte-order
    mark; records with other bytes are reported and the rest is read.

    Raises `DataError` where nothing can be read at all: no such file, a folder, no permission, an archive, an empty
    file, a header without rows, an encoding that does not exist or does not fit.
    """
    data = _bytes_of(path)
    log = FindingLog(str(path))
    decoded = _decode(path, data, encoding)
    if not decoded.text.strip():
        raise DataError("the file is empty", where=str(path), expected=_SHAPES, fix="check that it was saved")
    if decoded.encoding.startswith(("latin", "iso-8859", "iso8859", "cp125", "windows")) and _is_utf8(data):
        log.add("encoding_doubtful", 1, f"data.encoding is {encoding}")

    kind = _recognise(path, decoded.text)
    rows: list[Row]
    if kind == "jsonl":
        rows, left_out = read_json_lines(decoded.text, log, decoded.bad_byte)
    elif kind == "json":
        rows, left_out = read_json_array(decoded.text, log, decoded.bad_byte)
    else:
        table = read_table(decoded.text, log, decoded.bad_byte, prefer_tab=path.suffix.lower() in {".tsv", ".tab"})
        rows, left_out = table.rows, table.left_out
        kind = "tsv" if table.delimiter == "\t" else "csv"
        columns = table.columns
    if kind in ("jsonl", "json"):
        columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    if not rows and not left_out:
        what = "the list is empty" if kind == "json" else "there is a header but no row"
        raise DataError(what, where=str(path), expected="at least one row", fix="check how the file was made")
    return ReadResult(rows, log.findings(), kind, decoded.encoding, columns, left_out)


def _bytes_of(path: Path) -> bytes:
    """The file's bytes, or a `DataError` that says why there are none."""
    where = str(path)
    try:
        if path.is_dir():
            raise DataError("this is a folder", where=where, expected="a file with rows", fix="name a file inside it")
        if path.exists() and not path.is_file():
            raise DataError("this is not a regular file", where=where, expected="a file with rows")
        data = path.read_bytes()
    except FileNotFoundError as error:
        near = sorted(p.name for p in path.parent.glob("*") if p.is_file())[:8] if path.parent.is_dir() else []
        fix = f"files beside it: {', '.join(near)}" if near else "check the path; it is relative to the recipe"
        raise DataError("there is no such file", where=where, expected="a file with rows", fix=fix) from error
    except PermissionError as error:
        raise DataError(
            "no permission to read the file", where=where, expected="a readable file", fix=f"chmod u+r {path}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character inside the path
        raise DataError(f"the file cannot be read: {error}", where=where, expected="a readable file") from error
    for magic, name in _BINARY.items():
        if data.startswith(magic):
            raise DataError(f"this is {name}", where=where, expected=_SHAPES)
    return data


def _decode(path: Path, data: bytes, encoding: str) -> _Decoded:
    """Text of `data`; bad bytes of UTF-8 stay in it as lone surrogates (PEP 383) so that rows can be told apart."""
    name = "utf-8" if encoding == "auto" else encoding
    if encoding == "auto" and (wide := _wide_encoding(data)):
        raise DataError(
            f"the file is not UTF-8 but looks like {wide}",
            where=str(path),
            expected="UTF-8",
            fix=f"set data.encoding: {wide}, or save the file as UTF-8",
        )
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        note = _bad_byte(data, error, name)
        if name.lower().replace("_", "-") not in {"utf-8", "utf8", "utf-8-sig"}:
            raise DataError(
                f"the file is not {name}: {note}",
                where=str(path),
                expected=f"text in {name}",
                fix="remove data.encoding if the file is UTF-8, or try cp1252 or latin-1",
            ) from error
        return _named(data.decode("utf-8", errors="surrogateescape"), name, note)
    except (LookupError, UnicodeError, ValueError) as error:
        raise DataError(
            f"there is no text encoding called {encoding!r}",
            where="data.encoding",
            expected="auto, utf-8, latin-1, cp1252, utf-16 or another name Python knows",
        ) from error
    if _SURROGATE.search(text):  # some of Python's codecs make them
        raise DataError(f"read as {name}, the file holds half characters", where=str(path), fix="correct data.encoding")
    return _named(text, name, None)


def _named(text: str, encoding: str, bad_byte: str | None) -> _Decoded:
    if text.startswith("\ufeff"):
        return _Decoded(text[1:], "utf-8-sig" if encoding == "utf-8" else encoding, bad_byte)
    return _Decoded(text, encoding.lower(), bad_byte)


def _bad_byte(data: bytes, error: UnicodeDecodeError, encoding: str) -> str:
    """Where the first bad byte is, and what it would be in the encodings people mostly mean."""
    before = data[: error.start].decode(encoding, errors="replace")
    line = before.count("\n") + before.count("\r") - before.count("\r\n") + 1
    line_start = max(data.rfind(b"\n", 0, error.start), data.rfind(b"\r", 0, error.start)) + 1
    byte = data[error.start : error.start + 1]
    readings = {name: byte.decode(name, errors="ignore") for name in ("latin-1", "cp1252")}
    guesses = ", ".join(f"{name} reads {char!r}" for name, char in readings.items() if char and char.isprintable())
    place = f"byte 0x{byte[0]:02X} on line {line}, byte {error.start - line_start + 1} of that line, is not {encoding}"
    return f"{place}; {guesses}" if guesses else place


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 by its mark, or UTF-16 without one by every second byte being NUL."""
    if data.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "utf-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = data[:400]
    if len(head) >= 8:
        half = len(head) // 2
        if head[1::2].count(0) > 0.8 * half and head[0::2].count(0) == 0:
            return "utf-16-le"
        if head[0::2].count(0) > 0.8 * half and head[1::2].count(0) == 0:
            return "utf-16-be"
    return None


def _is_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8 with at least one character beyond ASCII."""
    if data.isascii():
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _recognise(path: Path, text: str) -> Kind:
    """The kind, by the first character and line, then by the name."""
    head = text.lstrip()
    first_line = head[: head.find("\n")] if "\n" in head else head
    suffix = path.suffix.lower()
    if head.startswith("["):
        # A row may be a list by mistake; a file whose first line is a whole value, and has more lines, is JSONL.
        if suffix in {".jsonl", ".ndjson"} and JsonParser().parse(first_line).value is not None and head != first_line:
            return "jsonl"
        if suffix in {".csv", ".tsv", ".tab"} and not head[1:].lstrip().startswith(("{", "[", "]")):
            return "csv"
        return "json"
    if head.startswith("{"):
        return _objects(path, head, first_line)
    if suffix in {".jsonl", ".ndjson"}:
        return "jsonl"
    if suffix == ".json":
        raise DataError(
            f"this does not look like JSON: it begins with {head[:20]!r}",
            where=str(path),
            expected="a JSON array of objects, or one object per line",
        )
    return "csv"


def _objects(path: Path, head: str, first_line: str) -> Kind:
    """A text that begins with `{`: one object per line, or one object around everything."""
    if head.rstrip() != first_line.rstrip() and (whole := JsonParser().parse(head).value) is not None:
        lists = [key for key, value in whole.items() if isinstance(value, list)] if isinstance(whole, dict) else []
        held = f" (it holds lists under {', '.join(map(repr, lists))})" if lists else ""
        raise DataError(
            f"the file is one JSON object over several lines{held}",
            where=str(path),
            expected="a JSON array of row objects, or one object per line",
            fix="save the list of rows by itself",
        )
    if path.suffix.lower() in {".csv", ".tsv", ".tab"} and JsonParser().parse(first_line).value is None:
        return "csv"
    return "jsonl"
