"""A source in blocks and on several cores says what the whole file says, line by line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import jsonl, spec, write
from tunesmith.data import Example, load_examples, read_rows, scan_examples, streaming
from tunesmith.data.findings import FindingLog
from tunesmith.data.streaming import first_rows, map_in_order, scan_rows
from tunesmith.data.types import Row
from tunesmith.errors import DataError, ResourceError


def lines(rows: Sequence[Row | Example], log: FindingLog) -> list[int]:
    return [row.line for row in rows]


def odd(examples: Sequence[Example], log: FindingLog) -> int:
    for example in examples:
        if example.question.endswith("7"):
            log.add("answer_equals_input", example.line)
    return len(examples)


def content(count: int, end: str = "\n") -> bytes:
    """Rows, every tenth of them broken in its own way."""
    broken = ["", "{oops", "[1]", '{"prompt": "a"}', '{"prompt": "", "completion": "b"}', '{"prompt": "\\ud800"}']
    rows = [
        broken[n // 10 % len(broken)]
        if n % 10 == 3
        else json.dumps({"prompt": f"é {n}", "completion": f"a {n}", "n": n}, ensure_ascii=False)
        for n in range(count)
    ]
    text = end.join(rows).encode()
    return text.replace("é 25".encode(), b"\xe9 25").replace(b"a 41", b"a \0 41")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 500)
    monkeypatch.setattr(streaming, "_WORTH_PROCESSES", 0)


def split_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read files by so few bytes that blocks begin and end anywhere."""
    whole = streaming._chunks
    monkeypatch.setattr(
        streaming, "_chunks", lambda path: (data[i : i + 97] for data in whole(path) for i in range(0, len(data), 97))
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_blocks_say_what_the_whole_file_says(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch, end: str, mark: bytes
) -> None:
    split_up(monkeypatch)
    path = write(tmp_path, "a.jsonl", mark + content(200, end))
    whole = load_examples(spec(path), path)
    scan = scan_examples(spec(path), path, lines, processes=1)
    assert len(scan.results) > 10
    assert [line for part in scan.results for line in part] == [e.line for e in whole.examples]
    assert (scan.rows, scan.examples, scan.format) == (whole.rows, len(whole.examples), whole.format)
    assert scan.findings == whole.findings
    assert {"wrong_encoding", "nul_byte", "broken_json", "unpaired_surrogate"} <= {f.code for f in scan.findings}


def test_several_processes_keep_the_order(tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    split_up(monkeypatch)
    path = write(tmp_path, "a.jsonl", content(200))
    one, two = (scan_examples(spec(path), path, odd, processes=n) for n in (1, 2))
    assert two == one
    assert sum(two.results) == two.examples
    noted = next(f for f in two.findings if f.code == "answer_equals_input")
    assert noted.lines == tuple(n + 1 for n in range(200) if n % 10 == 7)


def die(job: int) -> int:
    return job if job < 3 else os._exit(1)


def test_a_process_that_dies_is_said() -> None:
    with pytest.raises(ResourceError, match="ended before its work was done"):
        list(map_in_order(die, range(10), processes=2))
    assert list(map_in_order(abs, range(-9, 0), processes=2)) == list(range(9, 0, -1))


def test_packed_files_are_streamed_too(tmp_path: Path, small_blocks: None) -> None:
    path = write(tmp_path, "a.jsonl.gz", gzip.compress(content(200)))
    plain = write(tmp_path, "a.jsonl", content(200))
    scan, whole = (scan_rows(p, lines, processes=1) for p in (path, plain))
    assert (scan.results[0][:5], scan.rows, scan.columns) == (whole.results[0][:5], whole.rows, whole.columns)
    data = gzip.compress(content(20_000))
    broken = write(tmp_path, "b.jsonl.gz", data[: len(data) // 2])
    torn = scan_rows(broken, lines, processes=1)
    read = read_rows(broken)
    assert (torn.rows, torn.left_out) == (len(read.rows) + read.left_out, read.left_out)
    assert {f.code: f.lines for f in torn.findings} == {f.code: f.lines for f in read.findings}
    assert "rest_unread" in {f.code for f in torn.findings}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", "prompt,completion\n" + '"a\nb",c\n' * 30),
        ("a.json", json.dumps([{"prompt": "a", "completion": str(n)} for n in range(30)], indent=1)),
        ("a.txt", "One.\n\n" * 30),
    ],
)
def test_other_kinds_are_looked_at_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: str
) -> None:
    monkeypatch.setattr(streaming, "BATCH", 7)
    path = write(tmp_path, name, data)
    scan = scan_examples(spec(path), path, lines)
    assert len(scan.results) == 5
    assert [line for part in scan.results for line in part] == [
        e.line for e in load_examples(spec(path), path).examples
    ]


def test_only_the_first_block_is_read_to_see_what_rows_are(tmp_path: Path, small_blocks: None) -> None:
    path = write(tmp_path, "a.jsonl", content(40) + b"\n" + b"{oops\n" * 5)
    rows, columns = first_rows(path, 3)
    assert ([row.line for row in rows], columns) == ([1, 2, 3], ("prompt", "completion", "n"))


@pytest.mark.parametrize(
    ("data", "error"),
    [(json.dumps({"rows": [1]}, indent=1), "one JSON object"), ("", "empty"), ("  \n ", "empty")],
)
def test_what_no_file_of_rows_is_gets_the_same_error(tmp_path: Path, data: str, error: str) -> None:
    path = write(tmp_path, "a.jsonl", data)
    with pytest.raises(DataError, match=error):
        scan_rows(path, lines)


def test_lines_that_end_with_cr_alone_are_cut_too(tmp_path: Path, small_blocks: None) -> None:
    path = write(tmp_path, "a.jsonl", content(200, "\r"))
    with pytest.MonkeyPatch.context() as patch:
        split_up(patch)
        scan: Any = scan_rows(path, lines, processes=1)
    assert len(scan.results) > 10
    assert [line for part in scan.results for line in part] == [row.line for row in read_rows(path).rows]


def test_a_file_of_broken_lines_only(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "{a\n{b\n")
    scan = scan_examples(spec(path), path, lines)
    assert (scan.results, scan.rows, scan.examples) == ([], 2, 0)
    assert [f.lines for f in scan.findings] == [(1, 2)]


def test_a_first_line_that_is_broken_does_not_change_the_way(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    split_up(monkeypatch)
    path = write(tmp_path, "a.jsonl", b"{oops\n" + content(100))
    scan: Any = scan_rows(path, lines, processes=1)
    assert len(scan.results) > 5
    assert 1 in next(f for f in scan.findings if f.code == "broken_json").lines


def test_blocks_are_made_only_when_they_are_wanted(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 2_000)
    made: list[int] = []
    true = streaming._Block

    def counted(*values: Any) -> Any:
        made.append(values[1])
        return true(*values)

    path = jsonl(tmp_path, [{"prompt": "a" * 500, "completion": "b"} for _ in range(2000)])
    monkeypatch.setattr(
        streaming, "_chunks", lambda path: (path.read_bytes()[i : i + 1000] for i in range(0, 10**6, 1000))
    )
    monkeypatch.setattr(streaming, "_Block", counted)
    blocks = iter(streaming._Blocks(path, "x"))
    for seen, _ in enumerate(blocks, 1):
        assert len(made) == seen
    assert len(made) > 100
