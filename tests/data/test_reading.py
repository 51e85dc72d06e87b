"""Files become rows; everything else is named by line."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from tests.data.makers import by_code, jsonl, write
from tunesmith.data import ReadResult, read_rows
from tunesmith.errors import DataError


def lines_of(result: ReadResult) -> list[int]:
    return [row.line for row in result.rows]


# --- kinds and encodings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 2}\n', "jsonl"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', "jsonl"),
        ("a.txt", '{"a": 1}\n{"a": 2}', "jsonl"),
        ("a.csv", '{"a": 1}\n{"a": 2}', "jsonl"),
        ("a.json", '[{"a": 1}, {"a": 2}]', "json"),
        ("a.jsonl", '[\n{"a": 1},\n{"a": 2}\n]\n', "json"),
        ("a.csv", "a,b\n1,2\n3,4\n", "csv"),
        ("a.csv", "a;b\n1,5;2\n3,5;4\n", "csv"),
        ("a.csv", "a\tb\n1\t2\n3\t4\n", "tsv"),
        ("a.tsv", "a\tb, c\n1\t2\n3\t4\n", "tsv"),
        ("a", "a,b\r\n1,2\r\n3,4", "csv"),
        ("a.csv", "[a],b\n1,2\n3,4\n", "csv"),
    ],
)
def test_kind_is_recognised(tmp_path: Path, name: str, content: str, kind: str) -> None:
    result = read_rows(write(tmp_path, name, content))
    assert result.kind == kind
    assert len(result.rows) == 2
    assert result.findings == []


def test_semicolon_file_keeps_decimal_commas(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.csv", "text;price\nbread;1,5\nmilk;0,9\n"))
    assert [dict(row.values) for row in result.rows] == [
        {"text": "bread", "price": "1,5"},
        {"text": "milk", "price": "0,9"},
    ]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_utf8_with_and_without_mark_reads_the_same(tmp_path: Path, mark: bytes) -> None:
    result = read_rows(write(tmp_path, "a.csv", mark + "text,label\ncafé,ü\n".encode()))
    assert result.columns == ("text", "label")
    assert dict(result.rows[0].values) == {"text": "café", "label": "ü"}
    assert result.encoding == ("utf-8-sig" if mark else "utf-8")


def test_latin1_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\nplain,x\ncafé,y\nthé,z\nlast,x\n".encode("latin-1"))
    result = read_rows(path)
    assert lines_of(result) == [2, 5]
    finding = by_code(result.findings)["wrong_encoding"]
    assert (finding.severity, finding.lines, finding.count) == ("error", (3, 4), 2)
    assert "0xE9" in finding.message
    assert "line 3, byte 4" in finding.message
    assert "latin-1 reads 'é'" in finding.message
    assert "latin-1" in finding.fix
    assert result.left_out == 2

    right = read_rows(path, encoding="latin-1")
    assert [row.values["text"] for row in right.rows] == ["plain", "café", "thé", "last"]
    assert right.findings == []


@pytest.mark.parametrize(("name", "opening", "closing"), [("a.jsonl", b"", b"\n"), ("a.json", b"[", b"\n]")])
def test_latin1_in_json(tmp_path: Path, name: str, opening: bytes, closing: bytes) -> None:
    separator = b",\n" if opening else b"\n"
    rows = separator.join([b'{"a": "x"}', b'{"a": "caf\xe9"}', b'{"a": "y"}'])
    result = read_rows(write(tmp_path, name, opening + rows + closing))
    assert [row.values["a"] for row in result.rows] == ["x", "y"]
    assert by_code(result.findings)["wrong_encoding"].lines == (2,)


def test_latin1_in_the_header_is_an_error_with_the_encodings_to_try(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"header is not UTF-8.*0xE9 on line 1, byte 4") as caught:
        read_rows(write(tmp_path, "a.csv", "café,b\n1,2\n".encode("latin-1")))
    assert "latin-1" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_recognised_not_read(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "a.csv", "text,label\nhello there,x\n".encode(encoding))
    with pytest.raises(DataError, match=f"looks like {encoding}"):
        read_rows(path)
    assert read_rows(path, encoding=encoding).rows[0].values["text"] == "hello there"


def test_utf8_read_as_latin1_is_doubted(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.csv", "text,label\ncafé,x\n"), encoding="latin-1")
    assert by_code(result.findings)["encoding_doubtful"].severity == "warning"


def test_named_encoding_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not ascii: byte 0xC3 on line 2, byte 4"):
        read_rows(write(tmp_path, "a.csv", "text,label\ncafé,x\n"), encoding="ascii")


@pytest.mark.parametrize("encoding", ["utf-99", "hex", "\0", "undefined"])
def test_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match=r"data\.encoding"):
        read_rows(write(tmp_path, "a.csv", "a,b\n1,2\n"), encoding=encoding)


# --- files that cannot be read -------------------------------------------------------------------------------------


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "reviews.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match="no such file") as caught:
        read_rows(tmp_path / "review.csv")
    assert "reviews.csv" in str(caught.value)
    assert caught.value.exit_code == 3


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is a folder"):
        read_rows(tmp_path)


def test_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="not a regular file"):
        read_rows(tmp_path / "pipe.csv")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.csv", "a,b\n1,2\n")

    def denied(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match="no permission to read") as caught:
        read_rows(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("path", ["a\0b.csv", "x" * 5000 + ".csv"])
def test_impossible_paths(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError):
        read_rows(tmp_path / path)


@pytest.mark.parametrize("content", ["", " \n\n\t", "\ufeff", "\ufeff\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        read_rows(write(tmp_path, "a.csv", content))


@pytest.mark.parametrize("content", ["text,label\n", "text,label", "text,label\n\n\n"])
def test_header_only(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="a header but no row"):
        read_rows(write(tmp_path, "a.csv", content))


def test_empty_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the list is empty"):
        read_rows(write(tmp_path, "a.json", "[ \n ]"))


def test_object_around_the_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one JSON object.*'rows'"):
        read_rows(write(tmp_path, "a.json", json.dumps({"version": 1, "rows": [{"a": 1}]}, indent=2)))


@pytest.mark.parametrize(
    ("magic", "name"), [(b"BZh9", "bzip2"), (b"PK\x03\x04", "zip archive or an office"), (b"SQLite format 3", "SQLite")]
)
def test_binary_files_are_named(tmp_path: Path, magic: bytes, name: str) -> None:
    with pytest.raises(DataError, match=name):
        read_rows(write(tmp_path, "a.csv", magic + b"\x00\x01\x02"))


# --- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_broken_lines_of_jsonl(tmp_path: Path, end: str) -> None:
    lines = ['{"a": 1}', '{"a": 2', "", "[1, 2]", "null", '"text"', '{"a": NaN}', '{"a": "\0"}', "{'a': 1}", '{"a": 3}']
    result = read_rows(write(tmp_path, "a.jsonl", end.join(lines) + end))
    assert lines_of(result) == [1, 10]
    found = by_code(result.findings)
    assert found["broken_json"].lines == (2, 7, 9)
    assert "line 2, expecting ',' delimiter" in found["broken_json"].message
    assert "2 more" in found["broken_json"].message
    assert found["row_not_object"].lines == (4, 5, 6)
    assert "a list" in found["row_not_object"].message
    assert found["nul_byte"].lines == (8,)
    assert found["blank_line"].lines == (3,)
    assert result.left_out == 7
    assert all(finding.source == str(tmp_path / "a.jsonl") for finding in result.findings)


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    result = read_rows(jsonl(tmp_path, [{"a": "x\u2028y\x85z"}, {"a": 1}]))
    assert lines_of(result) == [1, 2]
    assert result.rows[0].values["a"] == "x\u2028y\x85z"


def test_all_lines_broken_is_a_finding_not_a_crash(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.jsonl", "hello\nworld\n"))
    assert result.rows == []
    assert by_code(result.findings)["broken_json"].lines == (1, 2)


def test_deep_nesting_is_reported(tmp_path: Path) -> None:
    nested = ['{"a": ' + "[" * depth + "]" * depth + "}" for depth in (5, 80, 50_000)]
    result = read_rows(write(tmp_path, "a.jsonl", "\n".join(nested)))
    assert lines_of(result) == [1]
    assert by_code(result.findings)["broken_json"].lines == (2, 3)


def test_many_brackets_are_not_depth(tmp_path: Path) -> None:
    result = read_rows(jsonl(tmp_path, [{"a": [[1], [2]] * 200}]))
    assert len(result.rows) == 1


def test_doubled_keys_and_lone_surrogates(tmp_path: Path) -> None:
    content = '{"a": 1, "b": 2, "a": 3}\n{"a": "\\ud83d"}\n{"a": "\\ud83d\\ude00"}\n{"\\udc00": 1}\n'
    result = read_rows(write(tmp_path, "a.jsonl", content))
    found = by_code(result.findings)
    assert lines_of(result) == [1, 3]
    assert (found["duplicate_key"].severity, found["duplicate_key"].lines) == ("warning", (1,))
    assert "'a'" in found["duplicate_key"].message
    assert found["unpaired_surrogate"].lines == (2, 4)


@pytest.mark.parametrize("indent", [None, 0, 2, 4, "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_of_an_array_know_their_line(tmp_path: Path, indent: int | str | None, end: str) -> None:
    rows = [{"a": number, "b": {"c": ["x\ny", number]}} for number in range(5)]
    text = json.dumps(rows, indent=indent)
    result = read_rows(write(tmp_path, "a.json", text.replace("\n", end)))
    assert [dict(row.values) for row in result.rows] == rows
    lines = text.splitlines()
    if indent is None:
        assert lines_of(result) == [1] * 5
    else:
        opening = ("\t" if indent == "\t" else " " * int(indent)) + "{"
        starts = [number for number, line in enumerate(lines, 1) if line == opening]
        assert lines_of(result) == starts


def test_broken_element_of_an_indented_array_costs_that_element(tmp_path: Path) -> None:
    lines = json.dumps([{"a": number, "b": [{"c": number}]} for number in range(6)], indent=2).split("\n")
    starts = [number for number, line in enumerate(lines, 1) if line == "  {"]
    lines[starts[2]] = '    "a": oops,'  # the line after the third opening brace
    lines[starts[4]] = '    "a": "never closed,'
    result = read_rows(write(tmp_path, "a.json", "\n".join(lines)))
    assert [row.values["a"] for row in result.rows] == [0, 1, 3, 5]
    finding = by_code(result.findings)["broken_json"]
    assert finding.lines == (starts[2], starts[4])
    assert f"on line {starts[2] + 1}" in finding.message


def test_inner_objects_are_not_taken_for_rows_where_nothing_is_indented(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": str(number)}] * 2} for number in range(3)]
    text = json.dumps(rows, indent=0).replace('"content": "1"', "oops", 1)
    result = read_rows(write(tmp_path, "a.json", text))
    assert [dict(row.values) for row in result.rows] == [rows[0], rows[2]]
    assert result.left_out == 1


@pytest.mark.parametrize(
    ("content", "rows", "code", "line"),
    [
        ('[\n{"a": 1},\n{"a": 2},\n]', 2, "broken_json", 3),
        ('[\n{"a": 1},\n{"a": 2}\n', 2, "broken_json", 4),
        ('[\n{"a": 1}\n]\nmore', 1, "broken_json", 3),
        ('[\n{"a": 1}\n{"a": 2}\n]', 2, "broken_json", 2),
        ('[{"a": 1}, {"a": oops}, {"a": 3}]', 1, "rest_unread", 1),
        ('[\n{"a": 1},\n3,\n{"a": 2}]', 2, "row_not_object", 3),
    ],
)
def test_faults_of_arrays(tmp_path: Path, content: str, rows: int, code: str, line: int) -> None:
    result = read_rows(write(tmp_path, "a.json", content))
    assert len(result.rows) == rows
    finding = {finding.code: finding for finding in result.findings}[code]
    assert (finding.severity, finding.lines) == ("error", (line,))


def test_hostile_array_ends_quickly(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.json", "[\n" + '{"a": x},\n' * 20_000 + "]"))
    assert result.rows == []
    assert {finding.code for finding in result.findings} == {"broken_json", "rest_unread"}


# --- CSV -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_records_know_the_line_they_begin_on(tmp_path: Path, end: str) -> None:
    lines = ["text,label", '"one', 'two",x', "short", "", '"a ""quoted"" word",y', "a,b,c", "last,z"]
    result = read_rows(write(tmp_path, "a.csv", end.join(lines) + end))
    assert lines_of(result) == [2, 6, 8]
    assert result.rows[0].values["text"] == f"one{end}two"
    assert result.rows[1].values["text"] == 'a "quoted" word'
    found = by_code(result.findings)
    assert found["too_few_cells"].lines == (4,)
    assert "1 instead of 2" in found["too_few_cells"].message
    assert found["too_many_cells"].lines == (7,)
    assert found["blank_line"].lines == (5,)
    assert result.left_out == 2


def test_quotation_mark_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    lines = ["text,label", "good,x", '"never closed,x', *[f"row {number},y" for number in range(5000)]]
    result = read_rows(write(tmp_path, "a.csv", "\n".join(lines)))
    assert lines_of(result) == [2, *range(4, 5004)]
    finding = by_code(result.findings)["broken_csv"]
    assert finding.lines == (3,)
    assert "never closed" in finding.message


def test_text_after_a_closing_quotation_mark(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.csv", 'text,label\n"a"b,x\nc,y\n'))
    assert lines_of(result) == [3]
    assert by_code(result.findings)["broken_csv"].lines == (2,)


def test_a_record_that_swallowed_others_says_how_far_it_runs(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.csv", 'text,label\n"open,x\nb,y\nc",z,w\nd,x\n'))
    assert lines_of(result) == [5]
    assert "runs on to line 4" in by_code(result.findings)["too_many_cells"].message


def test_hostile_quotes_end_quickly_and_lose_nothing(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.csv", "text,label\n" + 'a","b\n' * 20_000))
    assert len(result.rows) + result.left_out >= 19_999
    assert by_code(result.findings)["broken_csv"].severity == "error"


def test_header_faults(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.csv", ",text, text ,label,text_2\n1,a,b,c,d\n"))
    assert result.columns == ("column_1", "text", "text_2", "label", "text_2_2")
    assert dict(result.rows[0].values) == {"column_1": "1", "text": "a", "text_2": "b", "label": "c", "text_2_2": "d"}
    codes = [(finding.code, finding.field) for finding in result.findings]
    assert codes == [("unnamed_column", None), ("duplicate_column", "text"), ("duplicate_column", "text_2")]


def test_header_after_blank_lines(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.csv", "\n\ntext,label\na,b\n"))
    assert lines_of(result) == [4]
    assert by_code(result.findings)["blank_line"].lines == (1, 2)


def test_nul_bytes(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.csv", "text,label\na,b\nc\0,d\ne,f\n"))
    assert lines_of(result) == [2, 4]
    assert by_code(result.findings)["nul_byte"].lines == (3,)
    with pytest.raises(DataError, match="NUL"):
        read_rows(write(tmp_path, "b.csv", "te\0xt,label\na,b\n"))


def test_cells_longer_than_the_parser_usually_allows(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    text = "x" * (before + 10)
    result = read_rows(write(tmp_path, "a.csv", f"text,label\n{text},y\n"))
    assert result.rows[0].values["text"] == text
    assert csv.field_size_limit() == before


def test_tab_separated_text_with_plain_quotation_marks(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.tsv", 'text\tlabel\n"No" he said\tx\n"open\ty\nplain\tz\n'))
    assert [row.values["text"] for row in result.rows] == ['"No" he said', '"open', "plain"]
    assert by_code(result.findings)["quotes_literal"].severity == "info"


def test_tab_separated_text_with_real_quoting(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.tsv", 'text\tlabel\n"two\nlines"\tx\n'))
    assert result.rows[0].values["text"] == "two\nlines"
    assert result.findings == []
