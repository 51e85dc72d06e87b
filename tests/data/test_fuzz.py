"""Whatever the bytes, the readers end in rows and findings or in a `DataError`, and no record is lost in silence."""

from __future__ import annotations

import csv
import io
import json
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.makers import spec, write
from tunesmith.data import check_examples, infer_task, load_examples, make_splits, propose, read_rows
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Split

CHAT = '{"messages": [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "yes", "weight": 1}]}'
SEEDS = [
    'text,label\n"a, ""b""",x\nc,y\n"two\nlines",x\n',
    '{"prompt": "a", "completion": "b"}\n{"prompt": "é", "completion": ["c"]}\n',
    f"{CHAT}\n{CHAT}\n",
    json.dumps([{"question": "a", "answer": 1}, {"question": "b", "answer": {"c": None}}], indent=1),
    'text\tlabel\nit\'s "x"\ty\n',
]
TOKENS = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\\",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"null",
    b":",
    b"\t",
]


def exercise(data: bytes, name: str) -> None:
    """Everything the room does with a file, with the invariants that must hold for any file."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), name, data)
        try:
            read = read_rows(path)
        except DataError as error:
            assert error.where
            return
        lines = data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n") + 1
        for row in read.rows:
            assert 1 <= row.line <= lines
            json.dumps(dict(row.values), ensure_ascii=False).encode()
        reported = [line for finding in read.findings if finding.severity == "error" for line in finding.lines]
        assert bool(reported) >= bool(read.left_out)
        assert all(1 <= line <= lines for line in reported)
        try:
            loaded = load_examples(spec(path), path)
            propose(path)
        except DataError:
            return
        assert loaded.rows == len(read.rows) + read.left_out
        dropped = {line for finding in loaded.findings for line in finding.lines}
        kept = {example.line for example in loaded.examples}
        assert all(row.line in kept | dropped for row in read.rows)
        assert len({example.id for example in loaded.examples}) == len(loaded.examples)
        task = infer_task(loaded.examples)
        check_examples(loaded.examples, task_type=task)
        try:
            splits = make_splits(loaded.examples, None, None, Split(), task_type=task)
        except DataError:
            return
        assert len(splits.train) + len(splits.validation) + len(splits.test) == len(loaded.examples)


names = st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt", "a"])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), names)
def test_random_bytes(data: bytes, name: str) -> None:
    exercise(data, name)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*TOKENS, b"a", b"prompt", b'"answer"', b'{"a":1}']), max_size=60), names)
def test_random_syntax(tokens: list[bytes], name: str) -> None:
    exercise(b"".join(tokens), name)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 2**32), names)
def test_mutated_files(seed: str, dice: int, name: str) -> None:
    draw = random.Random(dice)
    data = bytearray(seed.encode())
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(data) + 1)
        choice = draw.random()
        if choice < 0.4:
            data[at:at] = draw.choice(TOKENS)
        elif choice < 0.8:
            del data[at : at + draw.randint(1, 4)]
        else:
            data[at:at] = data[: draw.randint(0, 30)]
    exercise(bytes(data), name)


lone_free = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(lone_free, lone_free | st.integers() | st.none(), max_size=3), min_size=1, max_size=8))
def test_jsonl_round_trip_with_a_broken_line_at_every_place(rows: list[dict[str, object]]) -> None:
    lines = [json.dumps(row) for row in rows]
    for broken in range(len(lines) + 1):
        text = "\n".join([*lines[:broken], '{"a": ', *lines[broken:]])
        with tempfile.TemporaryDirectory() as folder:
            read = read_rows(write(Path(folder), "a.jsonl", text))
        assert [dict(row.values) for row in read.rows] == rows
        assert [finding.lines for finding in read.findings if finding.code == "broken_json"] == [(broken + 1,)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=8), st.sampled_from([",", ";", "\t"]))
def test_csv_round_trip_with_lines(rows: list[tuple[str, str, str]], delimiter: str) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["one", "two", "three"])
    starts = []
    for row in rows:
        text = out.getvalue()
        starts.append(text.count("\n") + text.count("\r") - text.count("\r\n") + 1)
        writer.writerow(row)
    with tempfile.TemporaryDirectory() as folder:
        read = read_rows(write(Path(folder), "a.csv", out.getvalue()))
    assert [tuple(row.values.values()) for row in read.rows] == rows
    assert [row.line for row in read.rows] == starts
    assert read.findings == []
