"""Real data sets, read as they are; skipped where they are not at hand."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import by_code, spec, write
from tunesmith.data import LoadResult, check_examples, infer_task, load_examples, make_splits, propose
from tunesmith.recipe.schema import Data, Split


@pytest.fixture
def file(shared_data: Path) -> Any:
    def find(name: str) -> Path:
        path = shared_data / name
        if not path.is_file():
            pytest.skip(f"{name} is not in {shared_data}")
        return path

    return find


def load(path: Path, **keys: Any) -> LoadResult:
    return load_examples(spec(path, **keys), path)


def test_banking77(file: Any) -> None:
    train, test = load(file("banking77/train.csv")), load(file("banking77/test.csv"))
    assert (train.rows, len(train.examples), test.rows) == (10_003, 10_003, 3_080)
    assert train.findings == test.findings == []
    assert infer_task(train.examples) == "classification"
    splits = make_splits(
        train.examples, None, test.examples, Split(), task_type="classification", max_rows=2_000
    )  # fmt: skip
    assert len(splits.train) + len(splits.validation) == 2_000
    assert len({example.expected for example in splits.train}) == 77
    assert len(splits.test) == 3_080
    known, asked = (
        [row["text"] for row in csv.DictReader(io.StringIO(file(f"banking77/{name}.csv").read_text(encoding="utf-8")))]
        for name in ("train", "test")
    )
    leaks = [text for text in asked if text in set(known)]
    whole = make_splits(train.examples, None, test.examples, Split(), task_type="classification")
    found = by_code(check_examples(train.examples, task_type="classification", splits=whole))
    assert sum(found[code].count for code in found if code.startswith("test_leak")) == len(leaks)


def test_lines_of_quoted_records(file: Any) -> None:
    path = file("tasteset/TASTEset.csv")
    result = load(path, span_types=["FOOD"])
    assert len(result.examples) == 700
    lines = path.read_text(encoding="utf-8").split("\n")
    for example in result.examples:
        first = example.question.split("\n")[0]
        assert lines[example.line - 1].lstrip('"').startswith(first.replace('"', '""')), example.line


def test_tasteset_foods(file: Any) -> None:
    result = load(file("tasteset/TASTEset.csv"), span_types=["FOOD"])
    first = result.examples[0]
    assert json.loads(first.expected) == ["rum", "triple sec", "Tia Maria", "orange juice"]
    assert infer_task(result.examples) == "extraction"
    raw = csv.DictReader(io.StringIO(file("tasteset/TASTEset.csv").read_text(encoding="utf-8"), newline=""))
    for example, row in zip(result.examples, raw, strict=True):
        foods = [span for span in json.loads(row["ingredients_entities"]) if span["type"] == "FOOD"]
        assert example.question == row["ingredients"]
        assert json.loads(example.expected) == [span["entity"] for span in sorted(foods, key=lambda s: s["start"])]
    assert propose(file("tasteset/TASTEset.csv")).span_types == ("FOOD",)


def test_dolly_duplicates(file: Any) -> None:
    """As many copies as a plain count finds in the file, and fifteen more when fifteen rows are put in again."""
    path = file("dolly15k/dolly15k.jsonl")
    result = load(path)
    raw = path.read_bytes().split(b"\n")
    rows = [json.loads(line) for line in raw if line]
    assert result.rows == len(rows)
    counts = Counter((row["instruction"], row["context"], row["response"]) for row in rows)
    copies = sum(counts.values()) - len(counts)
    found = {f.code: f.count for f in check_examples(result.examples, task_type="generation")}
    assert found.get("duplicate_row", 0) == copies
    assert "category" in by_code(result.findings)["unused_columns"].message


def test_fifteen_planted_copies_are_found(file: Any, tmp_path: Path) -> None:
    lines = file("dolly15k/dolly15k.jsonl").read_bytes().splitlines()[:1000]
    assert len(set(lines)) == 1000
    path = write(tmp_path, "planted.jsonl", b"\n".join([*lines, *lines[100:115]]))
    found = by_code(check_examples(load(path).examples, task_type="generation"))["duplicate_row"]
    assert found.count == 15
    assert found.lines == (*range(101, 116), *range(1001, 1016))


def test_svamp(file: Any) -> None:
    path = file("svamp/SVAMP.json")
    rows = json.loads(path.read_text())
    result = load(path, template="{Body} {Question}\nAnswer: {Answer}")
    assert [float(example.expected) for example in result.examples] == [row["Answer"] for row in rows]
    assert result.examples[5].question == f"{rows[5]['Body']} {rows[5]['Question']}\nAnswer: "
    lines = path.read_text().splitlines()
    assert all(lines[example.line - 1].strip() == "{" for example in result.examples)
    assert infer_task(result.examples) == "generation"


def test_alpaca(file: Any) -> None:
    path = file("format_samples/alpaca_en_demo.json")
    rows = json.loads(path.read_text())
    result = load(path)
    expected = [f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"] for row in rows]
    assert [example.question for example in result.examples] == expected
    assert [example.expected for example in result.examples] == [row["output"] for row in rows]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("gsm8k/train.jsonl", "generation"),
        ("medquad/medquad.jsonl", "generation"),
        ("tldr/nl2cmd.jsonl", "generation"),
        ("mbpp/mbpp.jsonl", "generation"),
        ("svamp/SVAMP.json", "generation"),
        ("svamp/mawps-asdiv-a_svamp_train.csv", "generation"),
        ("banking77/test.csv", "classification"),
        ("format_samples/alpaca_en_demo.json", "generation"),
    ],
)
def test_proposals_load(file: Any, name: str, task: str) -> None:
    path = file(name)
    proposal = propose(path)
    assert proposal.task_type == task
    result = load_examples(Data.model_validate(proposal.data), path, task_type=task)
    assert len(result.examples) == result.rows == proposal.rows


def test_own_phrases(examples: Path) -> None:
    path = examples / "phrases" / "phrases.csv"
    if not path.is_file():
        pytest.skip("examples/phrases is not written yet")
    proposal = propose(path)
    assert proposal.task_type == "classification"
    assert len(proposal.labels) == 8
