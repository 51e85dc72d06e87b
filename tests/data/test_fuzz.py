"""Whatever the bytes, the readers end in rows and findings or in a `DataError`, and no record is lost in silence.

`TUNESMITH_FUZZ=10000` mutates so many files instead of a few hundred, from the same seeds every time.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.makers import spec, write
from tunesmith.data import (
    EVERYTHING,
    check_examples,
    convert,
    infer_task,
    load_examples,
    make_splits,
    propose,
    read_rows,
    scan_examples,
)
from tunesmith.data.findings import FindingLog
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Split

CHAT = '{"messages": [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "yes", "weight": 1}]}'
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
TOOLS = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hé"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
        {"role": "assistant", "content": "yes", "weight": 0.5},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
}
SHARE = {
    "conversations": [
        {"from": "human", "value": "hé"},
        {"from": "function_call", "value": '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]'},
        {"from": "observation", "value": '["a", 1]'},
        {"from": "gpt", "value": "yes"},
    ],
    "tools": '[{"name": "f"}]',
}
PREFERENCE = {
    "input": {"messages": [{"role": "user", "content": "a"}]},
    "preferred_output": [{"role": "assistant", "content": "b"}],
    "non_preferred_output": [{"role": "assistant", "content": "c"}],
}
SEEDS = [
    'text,label\n"a, ""b""",x\nc,y\n"two\nlines",x\n',
    '{"prompt": "a", "completion": "b"}\n{"prompt": "é", "completion": ["c"]}\n',
    f"{CHAT}\n{CHAT}\n",
    json.dumps([{"question": "a", "answer": 1}, {"question": "b", "answer": {"c": None}}], indent=1),
    'text\tlabel\nit\'s "x"\ty\n',
    f"{json.dumps(TOOLS)}\n{json.dumps(TOOLS, ensure_ascii=False)}\n",
    json.dumps([SHARE, SHARE], indent=2),
    f"{json.dumps(PREFERENCE)}\n" * 2,
    '{"prompt": "a", "chosen": "b c", "rejected": "b d"}\n{"chosen": "x y", "rejected": "x z"}\n',
    '{"instruction": "a", "input": "", "output": "b", "history": [["c", "d"]], "kto_tag": true}\n' * 2,
    '{"messages": [{"role": "user", "content": "a"}], "reference": {"b": [1]}}\n' * 2,
    '{"context": "c", "question": "q", "answers": {"text": ["a"]}}\n' * 2,
    "Ann B-PER\nsmiles O\n. O\n\n-DOCSTART- O\n\nOslo I-LOC\n",
    "One paragraph,\nof two lines.\n\nAnother; one.\n",
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


def lines_of(examples: Any, log: FindingLog) -> list[int]:
    return [example.line for example in examples]


def exercise(data: bytes, name: str, packed: bytes | None = None) -> None:
    """Everything the room does with a file, with the invariants that must hold for any file."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), name, data if packed is None else packed)
        try:
            read = read_rows(path)
        except DataError as error:
            assert error.where
            return
        # A bit turned in an archive may unpack to more lines than were packed, before its checksum says so.
        lines = data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n") + 1 if packed is None else 10**6
        for row in read.rows:
            assert 1 <= row.line <= lines
            json.dumps(dict(row.values), ensure_ascii=False).encode()
        if read.kind == "jsonl" and packed is None:
            said = data.removeprefix(b"\xef\xbb\xbf")
            lines_read = [line.encode("latin-1") for line in io.StringIO(said.decode("latin-1"), newline="")]
            # A lone byte 0x85 is no text, while the character U+0085 counts as space.
            records = sum(bool(line.decode("utf-8", "replace").strip()) for line in lines_read)
            assert records == len(read.rows) + read.left_out
        reported = [line for finding in read.findings if finding.severity == "error" for line in finding.lines]
        assert bool(reported) >= bool(read.left_out)
        assert all(1 <= line <= lines for line in reported)
        try:
            loaded = load_examples(spec(path), path)
        except DataError:
            loaded = None
        exercise_others(path, Path(folder), loaded)
        if loaded is None:
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


def exercise_others(path: Path, folder: Path, loaded: Any) -> None:
    """The same file in other ways: as a proposal, in blocks, converted."""
    try:
        propose(path)
    except DataError as error:
        assert error.what
    try:
        scan = scan_examples(spec(path), path, lines_of, processes=1)
    except DataError:
        assert loaded is None
    else:
        assert loaded is not None
        assert [line for part in scan.results for line in part] == [e.line for e in loaded.examples]
        assert scan.rows == loaded.rows
        assert {(f.code, f.field, f.lines) for f in scan.findings} == {
            (f.code, f.field, f.lines) for f in loaded.findings
        }
    for to in ("openai-chat", "trl", "alpaca", "sharegpt"):
        try:
            done = convert(spec(path), to, folder / f"{to}.jsonl", lossy=True)
        except DataError:
            continue
        back = load_examples(spec(done.out), done.out, learns=EVERYTHING)
        assert back.rows == done.written
        if not done.losses:
            there = load_examples(spec(path), path, learns=EVERYTHING)
            assert [e.id for e in back.examples] == [e.id for e in there.examples]


names = st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt", "a"])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), names)
def test_random_bytes(data: bytes, name: str) -> None:
    exercise(data, name)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*TOKENS, b"a", b"prompt", b'"answer"', b'{"a":1}']), max_size=60), names)
def test_random_syntax(tokens: list[bytes], name: str) -> None:
    exercise(b"".join(tokens), name)


def mutated(draw: random.Random) -> bytes:
    """A seed with a few bytes put in, taken out or repeated."""
    data = bytearray(draw.choice(SEEDS).encode())
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(data) + 1)
        choice = draw.random()
        if choice < 0.4:
            data[at:at] = draw.choice(TOKENS)
        elif choice < 0.8:
            del data[at : at + draw.randint(1, 4)]
        elif choice < 0.9:
            data[at : at + 1] = bytes([draw.randrange(256)])
        else:
            data[at:at] = data[: draw.randint(0, 30)]
    return bytes(data)


NAMES = ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt", "a", "a.conll"]
FILES = int(os.environ.get("TUNESMITH_FUZZ", "300"))


@pytest.mark.parametrize("part", range(10))
def test_mutated_files(part: int) -> None:
    """Seeded, so that a failure comes again; a file that takes long is a hang on its way."""
    for number in range(part, FILES, 10):
        draw = random.Random(number)
        data, name = mutated(draw), draw.choice(NAMES)
        begin = time.process_time()
        try:
            if number % 10 == 9:
                pack, ending = draw.choice([(gzip.compress, ".gz"), (lzma.compress, ".xz")])
                packed = bytearray(pack(data))
                if draw.random() < 0.8:
                    packed[draw.randrange(len(packed))] ^= 1 << draw.randrange(8)
                exercise(data, name + ending, bytes(packed))
            else:
                exercise(data, name)
        except Exception as error:
            error.add_note(f"file number {number}, {name}: {data!r}")
            raise
        assert time.process_time() - begin < 5, f"file number {number} took too long"


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_mutated_tables(kind: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    ipc, parquet = pytest.importorskip("pyarrow.ipc"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([json.loads(CHAT), json.loads(CHAT)] * 3)
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table)
    whole = path.read_bytes()
    for number in range(FILES // 10):
        draw = random.Random(number)
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(8, len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
        try:
            read = read_rows(path)
            loaded = load_examples(spec(path), path, learns=EVERYTHING)
        except DataError as error:
            assert error.where
            continue
        assert loaded.rows == len(read.rows) + read.left_out
        dropped = {line for finding in loaded.findings for line in finding.lines}
        assert all(row.line in dropped | {e.line for e in loaded.examples} for row in read.rows)


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
