"""What `init` would propose, and that the proposal loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.makers import jsonl, write
from tunesmith.data import load_examples, propose
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data


def test_two_columns(tmp_path: Path) -> None:
    lines = [f"sentence {number},{('calm', 'angry')[number % 2]}" for number in range(20)]
    path = write(tmp_path, "a.csv", "\n".join(["phrase,tone", *lines, "empty,"]))
    proposal = propose(path)
    assert (proposal.kind, proposal.task_type, proposal.labels) == ("csv", "classification", ("angry", "calm"))
    assert proposal.data == {
        "train": str(path),
        "format": "columns",
        "columns": {"prompt": "phrase", "answer": "tone"},
    }
    assert proposal.task == {"type": "classification"}
    assert proposal.rows == 21
    assert [example.expected for example in proposal.samples] == ["calm", "angry", "calm"]
    assert any("empty answer" in warning for warning in proposal.warnings)
    assert len(load_examples(Data.model_validate(proposal.data), path).examples) == 20


def test_chat(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "A long answer, this one is."}]
    proposal = propose(jsonl(tmp_path, [{"messages": messages}] * 3))
    assert (proposal.format, proposal.data["format"], proposal.task_type) == ("chat", "chat", "generation")


def test_json_lists_are_traced_to_the_column_they_come_from(tmp_path: Path) -> None:
    columns = ["title", "ingredients", "directions", "link", "source", "NER"]
    rows = [
        [f"Dish {n}", json.dumps([f"2 c. flour {n}", "1 egg"]), "Mix it all and bake it for a very long time.",
         f"www.example.org/{n}", "Gathered", json.dumps([f"flour {n}", "egg"])]
        for n in range(12)
    ]  # fmt: skip
    proposal = propose(jsonl(tmp_path, [dict(zip(columns, row, strict=True)) for row in rows]))
    assert proposal.data["columns"] == {"prompt": "ingredients", "answer": "NER"}
    assert proposal.task_type == "extraction"
    assert any("guess" in warning for warning in proposal.warnings)


def test_spans(tmp_path: Path) -> None:
    rows = [
        {"recipe": f"1 cup food {n}", "marks": [{"start": 6, "end": 9, "type": "FOOD", "entity": f"food {n}"},
                                                {"start": 2, "end": 5, "type": "UNIT", "entity": "cup"}]}
        for n in range(5)
    ]  # fmt: skip
    proposal = propose(jsonl(tmp_path, rows))
    assert proposal.span_types == ("FOOD",)
    assert proposal.samples[0].expected == '["food 0"]'
    assert any("UNIT" in reason for reason in proposal.reasons)


def test_body_and_question_become_a_template(tmp_path: Path) -> None:
    rows = [{"Body": f"Ann has {n} nuts.", "Question": "How many?", "Answer": float(n)} for n in range(4)]
    proposal = propose(jsonl(tmp_path, rows))
    assert proposal.data["template"] == "{Body}\n{Question}\n{Answer}"
    assert proposal.samples[1].question == "Ann has 1 nuts.\nHow many?\n"
    repeated = [{**row, "Question": f"{row['Body']} How many?"} for row in rows]
    assert propose(jsonl(tmp_path, repeated)).data["columns"] == {"prompt": "Question", "answer": "Answer"}


def test_few_values_are_a_label(tmp_path: Path) -> None:
    rows = [{"id": n, "comment": f"A comment that says {n}", "verdict": ("good", "bad")[n % 2]} for n in range(12)]
    proposal = propose(jsonl(tmp_path, rows))
    assert proposal.data["columns"] == {"prompt": "comment", "answer": "verdict"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("oops\n", "no row can be read"),
        ('{"text": "a"}\n{"text": "b"}\n', "no column looks like an answer"),
        ('{"prompt": "", "completion": ""}\n', "no row can be used"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "preference"),
    ],
)
def test_nothing_to_propose(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        propose(write(tmp_path, "a.jsonl", content))
