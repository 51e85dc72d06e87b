"""Rows of a large file on the disk: the same examples, whatever looks at them, at a small price in memory."""

from __future__ import annotations

import gc
import json
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.makers import plain_text
from tunesmith.data import Example, check_examples, load_examples, make_splits, on_disk, reading, streaming
from tunesmith.data.on_disk import StoredExample, is_large, load_on_disk
from tunesmith.errors import DataError, ResourceError
from tunesmith.recipe.schema import Data, Split


def chat(count: int, length: int = 2) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(plain_text(i * 1_000 + j) for j in range(length))},
                {"role": "assistant", "content": f"answer {i % 6}"},
            ],
            "who": i % 30,
        }
        for i in range(count)
    ]


def written(path: Path, rows: list[dict]) -> Data:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Data(train=str(path))


@pytest.fixture
def both(tmp_path, monkeypatch) -> tuple[list[Example], list[Example]]:
    """Rows in memory and on the disk: copies, broken ones and several blocks among them."""
    monkeypatch.setattr(streaming, "BLOCK", 3_000)
    rows = [*chat(90), *chat(30), {"messages": []}, *chat(5)]
    spec = written(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.jsonl").open("a") as stream:
        stream.write('{"messages": broken\n')
    held = load_examples(spec, spec.train)
    stored = load_on_disk(spec, spec.train, tmp_path / "cache")
    assert (stored.rows, stored.left_out, stored.format) == (held.rows, held.left_out, held.format)
    assert stored.findings == held.findings and held.findings
    assert list((tmp_path / "cache").iterdir()) == []  # the file has no name
    return held.examples, stored.examples


def test_they_are_the_examples_that_loading_gives(both):
    held, stored = both
    assert len(held) == 125 and stored == held and held == stored
    assert [e.id for e in stored] == [e.id for e in held] and len({e.id for e in held}) == 125
    assert [(e.line, e.source, e.values, e.kind, e.question, e.prompt) for e in stored] == [
        (e.line, e.source, e.values, e.kind, e.question, e.prompt) for e in held
    ]
    assert [hash(e) for e in stored] == [hash(e) for e in held] and stored[0] != stored[1]


def test_what_is_made_of_them_is_whole(both):
    held, stored = both
    sent = pickle.loads(pickle.dumps(stored[100]))
    assert type(sent) is Example and sent == held[100] and sent.values == held[100].values
    other = replace(stored[3], expected="else")
    assert (other.expected, other.id, other.messages) == ("else", held[3].id, held[3].messages)
    with pytest.raises(AttributeError, match="colour"):
        _ = stored[0].colour


def test_checks_and_splits_are_the_same(both):
    for split in (Split(), Split(group_by="who"), Split(method="order"), Split(near_duplicates="ignore")):
        made = [make_splits(rows, None, None, split, task_type="classification") for rows in both]
        assert made[0].hashes == made[1].hashes and made[0].explanation == made[1].explanation
        assert made[0].train == made[1].train and all(type(e) is StoredExample for e in made[1].train)
    found = [check_examples(rows, task_type="classification", splits=made[n]) for n, rows in enumerate(both)]
    assert found[0] == found[1] and len(found[0]) > 2


def test_large_files_only(tmp_path, monkeypatch):
    spec = written(tmp_path / "rows.jsonl", chat(10))
    assert not is_large(spec, spec.train)
    monkeypatch.setattr(on_disk, "LARGE", 100)
    assert is_large(spec, spec.train)
    assert not is_large(spec, tmp_path / "nothing.jsonl") and not is_large(spec, tmp_path)
    assert not is_large(spec.model_copy(update={"span_types": ["food"]}), spec.train)


def test_a_file_without_a_usable_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n{"messages": []}\n')
    spec = Data(train=str(tmp_path / "rows.jsonl"))
    stored, held = load_on_disk(spec, spec.train, tmp_path), load_examples(spec, spec.train)
    assert stored.examples == held.examples == [] and stored.findings == held.findings


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    spec = written(tmp_path / "rows.jsonl", chat(3))
    with pytest.raises(ResourceError, match="cannot be kept here"):
        load_on_disk(spec, spec.train, tmp_path / "file")


def test_memory_grows_by_rows_and_not_by_what_they_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 1 << 17)
    held = []
    for length in (1, 40):
        spec = written(tmp_path / "rows.jsonl", chat(1_000, length))
        tracemalloc.start()
        examples = load_on_disk(spec, spec.train, tmp_path / "cache").examples
        splits = make_splits(examples, None, None, Split(near_duplicates="ignore"), task_type="generation")
        gc.collect()  # what is held, and not what waits to be collected
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(splits.train) + len(splits.validation) + len(splits.test) == 1_000
    assert held[1] < held[0] + 300_000  # of rows with 1,400,000 bytes more
    assert held[0] < 1_000 * 600


def late_rows(late: dict, count: int = 12) -> list[dict]:
    """Rows of two columns, of which only the last have more."""
    return [{"a": f"question {n}", "b": f"answer {n}", **(late if n >= count - 3 else {})} for n in range(count)]


@pytest.mark.parametrize(
    "settings",
    [
        {},  # two columns explain themselves, whatever comes later
        {"columns": {"prompt": "a", "answer": "late"}},
        {"columns": {"prompt": "a", "answer": ["b", "late"]}},
        {"columns": {"prompt": "a", "answer": "late.at"}},
        {"columns": {"prompt": "a", "answer": "b", "rejected": "late"}},
        {"template": "{a} and {late} → {b}"},
        {"columns": {"prompt": "a", "answer": "late"}, "defaults": {"late": "none"}},
    ],
)
def test_columns_that_come_late_are_read_alike(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(reading, "HEAD_ROWS", 5)
    monkeypatch.setattr(streaming, "HEAD_ROWS", 5)
    monkeypatch.setattr("tunesmith.data.examples.LOOK_AT", 2)
    written(tmp_path / "rows.jsonl", late_rows({"late": {"at": "x"} if "late.at" in str(settings) else "so"}))
    spec = Data(train=str(tmp_path / "rows.jsonl"), **settings)
    held = load_examples(spec, spec.train)
    stored = load_on_disk(spec, spec.train, tmp_path / "cache")
    assert stored.examples == held.examples and stored.findings == held.findings
    assert (stored.rows, stored.format, stored.reason) == (held.rows, held.format, held.reason) and held.rows == 12
    assert len(held.examples) == (12 if not settings or "defaults" in settings else 3)


def test_a_column_that_no_row_has_is_refused_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "HEAD_ROWS", 5)
    monkeypatch.setattr(streaming, "HEAD_ROWS", 5)
    monkeypatch.setattr("tunesmith.data.examples.LOOK_AT", 2)
    written(tmp_path / "rows.jsonl", late_rows({"late": "so"}))
    spec = Data(train=str(tmp_path / "rows.jsonl"), columns={"prompt": "a", "answer": "nowhere"})
    said = []
    for load in (lambda: load_examples(spec, spec.train), lambda: load_on_disk(spec, spec.train, tmp_path)):
        with pytest.raises(DataError, match="'nowhere', but there is no such column") as caught:
            load()
        said.append(str(caught.value))
    assert said[0] == said[1]
