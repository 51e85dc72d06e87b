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
from tunesmith.data import (
    EVERYTHING,
    LoadResult,
    check_examples,
    convert,
    infer_task,
    load_examples,
    make_splits,
    propose,
)
from tunesmith.errors import DataError
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
        [" ".join(row["text"].casefold().split()) for row in csv.DictReader(io.StringIO(text))]
        for text in (file(f"banking77/{name}.csv").read_text(encoding="utf-8") for name in ("train", "test"))
    )
    leaks = [text for text in asked if text in set(known)]
    whole = make_splits(train.examples, None, test.examples, Split(), task_type="classification")
    found = by_code(check_examples(train.examples, task_type="classification", splits=whole, depth="quick"))
    assert sum(found[code].count for code in ("test_leak_row", "test_leak_prompt") if code in found) == len(leaks)


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
    found = {f.code: f.count for f in check_examples(result.examples, task_type="generation", depth="quick")}
    assert found.get("duplicate_row", 0) == copies
    assert "category" in by_code(result.findings)["unused_columns"].message


def test_fifteen_planted_copies_are_found(file: Any, tmp_path: Path) -> None:
    lines = file("dolly15k/dolly15k.jsonl").read_bytes().splitlines()[:1000]
    assert len(set(lines)) == 1000
    path = write(tmp_path, "planted.jsonl", b"\n".join([*lines, *lines[100:115]]))
    found = by_code(check_examples(load(path).examples, task_type="generation", depth="quick"))["duplicate_row"]
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
    assert infer_task(result.examples) == "maths"


def test_alpaca(file: Any) -> None:
    path = file("format_samples/alpaca_en_demo.json")
    rows = json.loads(path.read_text())
    result = load(path)
    expected = [f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"] for row in rows]
    assert [example.question for example in result.examples] == expected
    assert [example.expected for example in result.examples] == [row["output"] for row in rows]


KNOWN: dict[str, tuple[str, int]] = {
    # file: how it is read, and rows that become examples
    "anthropic_evals/persona/agreeableness.jsonl": ("columns", 1_000),
    "banking77/test.csv": ("columns", 3_080),
    "banking77/train.csv": ("columns", 10_003),
    "dolly15k/dolly15k.jsonl": ("prompt_completion", 14_996),
    "format_samples/alpaca_en_demo.json": ("alpaca", 999),
    "format_samples/c4_demo.jsonl": ("text", 300),
    "format_samples/dpo_en_demo.json": ("sharegpt", 300),
    "format_samples/glaive_toolcall_en_demo.json": ("sharegpt", 300),
    "format_samples/kto_en_demo.json": ("rated", 300),
    "format_samples/v1_dpo_demo.jsonl": ("preference", 10),
    "format_samples/v1_sft_demo.jsonl": ("chat", 500),
    "gsm8k/example_model_solutions.jsonl": ("columns", 1_319),
    "gsm8k/train.jsonl": ("prompt_completion", 7_473),
    "mbpp/mbpp.jsonl": ("columns", 974),
    "scitldr/train.jsonl": ("columns", 1_992),
    "self_instruct/seed_tasks.jsonl": ("template", 175),
    "self_instruct/user_oriented_instructions.jsonl": ("template", 252),
    "svamp/SVAMP.json": ("template", 1_000),
    "svamp/mawps-asdiv-a_svamp_train.csv": ("columns", 3_138),
    "tasteset/TASTEset.csv": ("columns", 700),
    "tldr/nl2cmd.jsonl": ("alpaca", 32_136),
    "pretraining/stories_asp_ccby.txt.xz": ("text", 4_303),
}
NOT_ROWS = ("license", "readme", "index.md", "dataset_info.json", ".bin")
TASKS = {"banking77/test.csv": "classification", "tasteset/TASTEset.csv": "extraction"}


def imported(path: Path) -> tuple[str, int, int, str]:
    """How a file is read as `init` proposes it: format, rows, rows that became examples, and the proposal's task."""
    proposal = propose(path)
    result = load_examples(Data.model_validate(proposal.data), path, learns=EVERYTHING)
    dropped = {line for finding in result.findings for line in finding.lines}
    kept = {example.line for example in result.examples}
    assert result.rows == proposal.rows
    assert result.left_out == 0 or len(dropped - kept) > 0
    return result.format, result.rows, len(result.examples), proposal.task_type


@pytest.mark.parametrize(
    "name", [name for name in KNOWN if name not in ("dolly15k/dolly15k.jsonl", "tldr/nl2cmd.jsonl")]
)
def test_files_import_as_init_proposes(file: Any, name: str) -> None:
    format, rows, examples, task = imported(file(name))
    assert (format, examples) == KNOWN[name]
    assert rows == examples
    assert task == TASKS.get(name, task)


@pytest.mark.slow
def test_every_file_of_every_folder_imports(shared_data: Path) -> None:
    """Prints the table (`-s`): nobody writes a mapping by hand for any of them."""
    table, failed = [], []
    for path in sorted(p for p in shared_data.rglob("*") if p.is_file()):
        name = str(path.relative_to(shared_data))
        if any(word in name.lower() for word in NOT_ROWS) or "wiki_body" in name:
            continue
        try:
            format, rows, examples, task = imported(path)
        except DataError as error:
            failed.append(f"{name}: {error}")
            continue
        table.append(f"| {name} | {format} | {rows:,} | {examples:,} | {task} |")
        if name in KNOWN:
            assert (format, examples) == KNOWN[name]
    print("\n| file | read as | rows | examples | task |", "|---|---|---|---|---|", *table, sep="\n")
    assert not failed, "\n".join(failed)
    assert len(table) >= len(KNOWN)


def test_a_catalogue_is_not_taken_for_rows(file: Any) -> None:
    with pytest.raises(DataError, match="catalogue of data sets"):
        propose(file("format_samples/dataset_info.json"))


def test_tool_turns_of_glaive_go_to_openai_and_back(file: Any, tmp_path: Path) -> None:
    path = file("format_samples/glaive_toolcall_en_demo.json")
    there = load_examples(spec(path), path, learns=EVERYTHING)
    assert sum(e.has_tools for e in there.examples) == 191
    assert sum(len(m.tool_calls) for e in there.examples for m in e.messages) == 211
    done = convert(spec(path), "openai-chat", tmp_path / "o.jsonl")
    rows = [json.loads(line) for line in done.out.read_text(encoding="utf-8").splitlines()]
    assert all(
        isinstance(call["function"]["arguments"], str)
        for row in rows
        for m in row["messages"]
        for call in m.get("tool_calls", [])
    )
    again = convert(spec(done.out), "sharegpt", tmp_path / "s.jsonl").out
    assert [e.id for e in load_examples(spec(again), again, learns=EVERYTHING).examples] == [
        e.id for e in there.examples
    ]


def test_own_phrases(examples: Path) -> None:
    path = examples / "phrases" / "phrases.csv"
    if not path.is_file():
        pytest.skip("examples/phrases is not written yet")
    proposal = propose(path)
    assert proposal.task_type == "classification"
    assert len(proposal.labels) == 8
