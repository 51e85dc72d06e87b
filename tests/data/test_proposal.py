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
        ('{"text": "a", "x": 1}\n{"text": "b", "x": 2}\n{"text": "c", "y": 3}\n', "no column looks like an answer"),
        ('{"prompt": "", "completion": ""}\n', "no row can be used"),
    ],
)
def test_nothing_to_propose(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        propose(write(tmp_path, "a.jsonl", content))


@pytest.mark.parametrize(
    ("rows", "format"),
    [
        ([{"text": "a long story"}, {"text": "another one", "url": "x"}], "text"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "preference"),
        ([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}], "sharegpt"),
        ([{"instruction": "a", "input": "", "output": "b"}], "alpaca"),
        ([{"tokens": ["Ann", "smiles"], "ner_tags": ["B-PER", "O"]}], "conll"),
        ([{"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}}], "squad"),
    ],
)
def test_formats_are_proposed_by_name(tmp_path: Path, rows: list[dict[str, object]], format: str) -> None:
    proposal = propose(jsonl(tmp_path, rows))
    assert (proposal.data["format"], proposal.format, proposal.rows) == (format, format, len(rows))
    assert "recognised by" in proposal.reasons[0]


def test_rows_with_calls_are_proposed_without_a_warning(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    proposal = propose(jsonl(tmp_path, [{"messages": messages}] * 3))
    assert proposal.data["format"] == "chat" and proposal.warnings == []
    assert proposal.samples[0].expected == '[{"name": "f", "arguments": {}}]'


def test_rows_that_cannot_be_learnt_yet_are_proposed_with_a_warning(tmp_path: Path) -> None:
    proposal = propose(jsonl(tmp_path, [{"messages": [{"role": "user", "content": "a"}], "item": 1}] * 3))
    assert proposal.data["format"] == "openai_rft"
    assert "can be converted" in proposal.warnings[0]
    assert any("a question without an answer" in warning for warning in proposal.warnings)


def test_two_answers_by_their_names(tmp_path: Path) -> None:
    rows = [{"question": "Kind?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No", "c": 1}]
    proposal = propose(jsonl(tmp_path, rows))
    assert proposal.data["columns"] == {
        "prompt": "question",
        "answer": "answer_matching_behavior",
        "rejected": "answer_not_matching_behavior",
    }


def test_fields_that_stand_in_the_input_become_an_object(tmp_path: Path) -> None:
    lines = ["line,name,quantity,unit,note", *(f"{n} g of fine food{n},food{n},{n},g,x" for n in range(1, 9))]
    proposal = propose(write(tmp_path, "a.csv", "\n".join(lines)))
    assert proposal.data["columns"] == {"prompt": "line", "answer": ["name", "quantity", "unit", "note"]}
    assert proposal.task_type == "extraction"
    assert json.loads(proposal.samples[0].expected) == {"name": "food1", "quantity": "1", "unit": "g", "note": "x"}


def test_lists_of_whole_texts_are_references_of_which_the_first_is_learnt(tmp_path: Path) -> None:
    rows = [
        {
            "source": ["One long sentence of a paper.", "Another one."],
            "target": [f"A summary of about eight words, {n}."],
        }
        for n in range(4)
    ]
    proposal = propose(jsonl(tmp_path, rows))
    assert proposal.data["columns"] == {"prompt": "source", "answer": "target[0]"}
    assert proposal.samples[0].question == "One long sentence of a paper.\nAnother one."
    assert proposal.samples[1].expected == "A summary of about eight words, 1."


def test_an_instruction_with_instances_becomes_a_template(tmp_path: Path) -> None:
    rows = [{"instruction": "Do.", "instances": [{"input": "i", "output": f"done {n}"}] * 2} for n in range(3)]
    proposal = propose(jsonl(tmp_path, rows))
    assert proposal.samples[0].question == "Do.\n\ni\n\n"
    assert proposal.samples[2].expected == "done 2"
    assert "up to 2 instances" in proposal.warnings[0]
