"""The record of what a base was trained on: nothing forgotten, nothing invented, small, and safe to load."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.types import Example, Message
from tunesmith.errors import EngineError
from tunesmith.models.training_text import (
    TrainingTextRecord,
    normalise,
    seen_in_training,
    text_hash,
    text_units,
)

LINE = "The ferry to the northern island leaves every morning at six."


def example(question: str, expected: str, name: str = "row") -> Example:
    return Example(name, (Message("user", question), Message("assistant", expected)), expected, 1, "rows.csv")


def test_case_and_whitespace_do_not_hide_a_text() -> None:
    record = TrainingTextRecord.from_texts(["Der  Große\tPlan\n"])
    assert "der grosse plan" in record
    assert "DER GROSSE PLAN" in record
    assert "der grosse plan!" not in record
    assert 7 not in record  # type: ignore[operator]


@given(st.text())
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    # Casefolding can compose new characters only once; whitespace is settled at once.
    assert normalise(once).split() == normalise(normalise(once)).split()
    assert once == once.strip()
    assert "  " not in once


@given(st.lists(st.text(), max_size=40), st.text())
def test_finds_exactly_what_was_recorded(texts: list[str], other: str) -> None:
    record = TrainingTextRecord.from_texts(texts)
    assert all(text in record for text in texts)
    assert record.count(texts) == len(texts)
    assert (other in record) == (normalise(other) in {normalise(text) for text in texts})


@given(st.lists(st.integers(0, 2**48 - 1), max_size=60))
def test_file_keeps_every_hash(tmp_path_factory: pytest.TempPathFactory, hashes: list[int]) -> None:
    path = tmp_path_factory.mktemp("record") / "training_text.hashes"
    record = TrainingTextRecord.from_hashes(hashes)
    record.save(path)
    assert TrainingTextRecord.load(path).hashes.tolist() == sorted(set(hashes))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_extreme_hashes_survive(tmp_path: Path) -> None:
    path = tmp_path / "r"
    TrainingTextRecord.from_hashes([2**48 - 1, 0]).save(path)
    assert TrainingTextRecord.load(path).hashes.tolist() == [0, 2**48 - 1]


def test_hashes_have_48_bits() -> None:
    values = [text_hash(str(i)) for i in range(2000)]
    assert max(values) < 2**48
    assert max(values) > 2**47
    assert len(set(values)) == 2000


def test_a_large_record_is_small_and_its_false_positives_are_as_stated(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    record = TrainingTextRecord.from_hashes(rng.integers(0, 2**48, 300_000).tolist())
    path = tmp_path / "training_text.hashes"
    record.save(path)
    assert path.stat().st_size < 1_300_000
    assert record.false_positive_probability() == pytest.approx(300_000 / 2**48, rel=1e-3)
    assert record.false_positive_probability(100_000) == pytest.approx(1.07e-4, rel=0.01)
    assert record.count(str(i) for i in range(20_000)) == 0


def test_an_empty_record_knows_nothing(tmp_path: Path) -> None:
    record = TrainingTextRecord.from_texts([])
    record.save(tmp_path / "r")
    again = TrainingTextRecord.load(tmp_path / "r")
    assert len(again) == 0
    assert "" not in again
    assert again.count([]) == 0


@pytest.mark.parametrize("damage", ["short", "magic", "version", "body", "count"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "r"
    TrainingTextRecord.from_texts(["one text that is recorded", "another one"]).save(path)
    data = bytearray(path.read_bytes())
    if damage == "short":
        data = data[:10]
    elif damage == "magic":
        data[0] ^= 1
    elif damage == "version":
        data[8] += 1
    elif damage == "body":
        data[-6:] = b"broken"
    else:
        data[12] += 1
    path.write_bytes(bytes(data))
    with pytest.raises(EngineError) as error:
        TrainingTextRecord.load(path)
    assert str(path) in str(error.value)


def test_units_are_the_whole_and_its_long_lines() -> None:
    assert list(text_units("Too short")) == []
    assert list(text_units(LINE)) == [normalise(LINE)]
    text = f"What time?\n\n  {LINE.upper()}\nshort line"
    assert list(text_units(text)) == [normalise(text), normalise(LINE)]


def test_seen_examples_are_found_by_question_line_and_answer() -> None:
    record = TrainingTextRecord.from_texts(
        ["Which animals live in the forest?", LINE, "A rather long answer to something.", "Yes"]
    )
    rows = [
        example("which animals  live in the FOREST?", "deer", "question"),
        example(f"Read this.\n{LINE}\nWhen does it leave?", "at six", "line"),
        example("Something nobody asked before", "A rather long answer to something.", "answer"),
        example("Something nobody asked before", "Yes", "short answer"),
        example("Which animals live in the water?", "A rather long answer to nothing.", "unseen"),
        example(f"Before it. {LINE}", "at six", "inside a line"),
    ]
    random.Random(0).shuffle(rows)
    expected = [row.id for row in rows if row.id in {"question", "line", "answer"}]
    assert seen_in_training(record, rows) == expected
    assert seen_in_training(TrainingTextRecord.from_texts([]), rows) == []
