"""CSV and JSON arrays are read in pieces of any size: the same rows, lines and findings, and little memory."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import by_code, write
from tests.data.test_fuzz import NAMES, TOKENS, mutated
from tunesmith.data import csv_rows, json_rows, read_rows, streaming
from tunesmith.data.findings import FindingLog
from tunesmith.data.sources import decoding
from tunesmith.data.sources.decoding import TextStream
from tunesmith.data.streaming import first_rows, scan_rows
from tunesmith.data.types import Row
from tunesmith.errors import DataError

ROWS = [{"a": n, "b": ["x\ny", n * 1.5e3, None, -(10**12)], "c": "é" * n} for n in range(30)]
ARRAYS = {indent: json.dumps(ROWS, indent=indent, ensure_ascii=False) for indent in (None, 0, 2)}
FILES: list[tuple[str, str | bytes]] = [
    ("a.json", ARRAYS[None]),
    ("a.json", ARRAYS[0]),
    ("a.json", "\ufeff" + ARRAYS[2].replace("\n", "\r\n")),
    ("a.json", ARRAYS[0].replace("\n", "\r")),
    ("a.json", ARRAYS[None].replace('{"a": 25,', '{"a": 25 oops,')),
    ("a.json", ARRAYS[None].replace("-1000000000000", "-Infinity")),
    ("a.json", ARRAYS[2].replace('"a": 20', '"a": oops').replace('"a": 26', '"a" 26').replace("\n", "\r\n")),
    ("a.json", ARRAYS[0].replace('"a": 20', '"a": "open')),
    ("a.json", ARRAYS[2].encode().replace("é".encode() * 7, b"\xe9", 1)),
    ("a.json", ARRAYS[2][:-1] + " \n, \n]  \n"),
    ("a.json", ARRAYS[2] + "\n\n  more"),
    ("a.json", "[12, 345, {}, 6789, true, null]"),
    ("a.csv", 'a,b\r\n"x\ry","é\n""q"""\r\nz,w\rshort\r\n\r\n"never, closed\nl,m\n' * 9),
    ("a.csv", b"a,b\n" + b'"x\n\xff",y\n\xc3' * 9 + b"\0,\0\nlast,\xc3"),
    ("a.tsv", 'a\tb\n"No" he said\tx\n"open\ty\n' * 20),
    ("a.tsv", 'a\tb\n"two\nlines"\tx\n' * 20),
]


def seen_of(path: Path) -> Any:
    try:
        read = read_rows(path)
    except DataError as error:
        return error.what, error.where
    return [(dict(row.values), row.line) for row in read.rows], read.findings, read.kind, read.columns, read.left_out


def small_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(decoding, "PIECE", size)
    monkeypatch.setattr(json_rows, "_KEEP", size)
    monkeypatch.setattr(json_rows, "_TAIL", 60)


@pytest.mark.parametrize("number", range(len(FILES)))
def test_pieces_of_any_size_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = write(tmp_path, *FILES[number])
    whole = seen_of(path)
    for size in (1, 2, 7, 64):
        small_pieces(monkeypatch, size)
        assert repr(seen_of(path)) == repr(whole)
    assert whole[0] or whole[1]


def test_pieces_of_mutated_files_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(150):
        draw = random.Random(number)
        data, name = mutated(draw), draw.choice(NAMES[:4])
        if number % 2:
            data = ARRAYS[draw.choice([None, 0, 2])].encode()
            for _ in range(draw.randint(0, 4)):
                at = draw.randrange(len(data))
                data = data[:at] + draw.choice([*TOKENS, b"NaN", b"}", b"\\u00"]) + data[at + draw.randint(0, 3) :]
        path = write(tmp_path, name, data)
        with monkeypatch.context() as patch:
            whole = seen_of(path)
            small_pieces(patch, draw.choice([1, 3, 19, 200]))
            assert repr(seen_of(path)) == repr(whole), (number, name, data)


def count(rows: Sequence[Row], log: FindingLog) -> int:
    return len(rows)


def content(kind: str, rows: int) -> tuple[str, Iterator[str]]:
    texts = (f"row {n} " + "abcdefghij " * 20 for n in range(rows))
    if kind == "csv":
        return "a.csv", (f'"{text}\n second line",{n}\n' if n else "text,label\n" for n, text in enumerate(texts))
    ends = ",\n" if kind == "lines" else ", "
    made = (json.dumps({"text": text, "n": n}) for n, text in enumerate(texts))
    return "a.json", (("[" if n == 0 else ends) + row + ("]" if n == rows - 1 else "") for n, row in enumerate(made))


@pytest.mark.parametrize("kind", ["csv", "lines", "one line"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(decoding, "PIECE", 1 << 14)
    monkeypatch.setattr(decoding, "HEAD", 1 << 14)
    monkeypatch.setattr(json_rows, "_KEEP", 1 << 14)
    monkeypatch.setattr(streaming, "BATCH", 50)
    peaks = []
    for rows in (1_000, 8_000):
        name, parts = content(kind, rows)
        path = write(tmp_path, name, "".join(parts))
        tracemalloc.start()
        scan = scan_rows(path, count, processes=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert scan.rows == sum(scan.results) == rows - (kind == "csv")
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < path.stat().st_size / 4


def test_to_see_what_rows_are_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PIECE", 1 << 10)
    monkeypatch.setattr(decoding, "HEAD", 1 << 10)
    monkeypatch.setattr(streaming, "BATCH", 10)
    read: list[int] = []
    chunks = TextStream._chunks

    def counted(stream: TextStream) -> Iterator[bytes]:
        for chunk in chunks(stream):
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr(TextStream, "_chunks", counted)
    path = write(tmp_path, "a.csv", "text,label\n" + "abc,x\n" * 20_000)
    rows, columns = first_rows(path, 3)
    assert ([row.line for row in rows], columns) == ([2, 3, 4], ("text", "label"))
    assert sum(read) < path.stat().st_size / 10


def test_an_element_that_never_ends_is_given_up_and_the_next_row_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch, 64)
    monkeypatch.setattr(json_rows, "MAX_ELEMENT", 2_000)
    rows = [json.dumps({"a": n, "b": "x" * 50}) for n in range(200)]
    rows[3] = '{"a": [{"b": "x"}'  # the rows behind it are read as elements of this list
    result = read_rows(write(tmp_path, "a.json", "[\n" + ",\n".join(rows) + "\n]"))
    found = by_code(result.findings)
    assert "does not end within 2,000 characters" in found["broken_json"].message
    assert found["broken_json"].lines == (5,)
    assert [row.values["a"] for row in result.rows] == [0, 1, 2, *range(4, 200)]


def test_a_large_element_is_no_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 64)
    rows = [{"a": "y" * 5_000}, {"a": [["z"] * 2_000]}]
    assert [dict(row.values) for row in read_rows(write(tmp_path, "a.json", json.dumps(rows))).rows] == rows


def test_a_quotation_mark_that_is_never_closed_does_not_fetch_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_rows, "MAX_CELL", 1_000)
    lines = ["text,label", '"open,x', *[f"row {n},y" for n in range(5_000)]]
    result = read_rows(write(tmp_path, "a.csv", "\n".join(lines)))
    finding = by_code(result.findings)["broken_csv"]
    assert finding.lines == (2,)
    assert "longer than 1,000 characters, or a quotation mark is opened and never closed" in finding.message
    assert [row.line for row in result.rows] == list(range(3, 5_003))


def test_bad_bytes_know_their_place_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.csv", b"text,label\r\n" + "é,x\r\n".encode() * 40 + b"ab\xe9c,y\r\nlast,z\r\n")
    for size in (1, 5, 1 << 20):
        monkeypatch.setattr(decoding, "PIECE", size)
        result = read_rows(path)
        message = by_code(result.findings)["wrong_encoding"].message
        assert "byte 0xE9 on line 42, byte 3 of that line" in message
        assert result.left_out == 1


def test_several_processes_look_at_the_rows_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(streaming, "BATCH", 7)
    path = write(tmp_path, "a.csv", "text,label\n" + "".join(f"row {n},{n}\nshort\n" for n in range(40)))
    one, two = (scan_rows(path, count, processes=n) for n in (1, 2))
    assert one == two
    assert (one.results, one.rows, one.left_out) == ([7, 7, 7, 7, 7, 5], 80, 40)
