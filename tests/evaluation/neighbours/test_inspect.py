"""A run as Inspect samples and logs."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.neighbours.made import INTENTS, make_evidence, prompt_of
from tunesmith.data.types import Message, ToolCall, Toolset
from tunesmith.errors import RecipeError
from tunesmith.evaluation.neighbours import Options, with_conversations, write_as


def logs(folder: Path) -> dict[str, Any]:
    """By candidate."""
    read = (json.loads(path.read_text(encoding="utf-8")) for path in (folder / "logs").glob("*.json"))
    return {log["eval"]["solver"]: log for log in read}


def test_samples_hold_the_turns_of_the_tuned_model(tmp_path: Path) -> None:
    made = write_as("inspect", make_evidence(tmp_path / "run"), tmp_path / "out", Options())
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [(s["input"][-1]["content"], s["target"]) for s in samples] == INTENTS
    assert samples[0]["input"][0] == {"role": "system", "content": "Sort it."} and samples[0]["id"] == "row0"
    assert "inspect view" in made.use and "turns" in made.notes[0]


def test_without_turns_samples_hold_bare_questions_and_say_so(tmp_path: Path) -> None:
    made = write_as("inspect", make_evidence(tmp_path / "run", conversations=False), tmp_path / "out", Options())
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert samples[0]["input"] == "My card never came" and "bare questions" in made.notes[0]


def test_a_log_has_every_row_and_the_run_s_numbers(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "run")
    write_as("inspect", evidence, tmp_path / "out", Options())
    found = logs(tmp_path / "out")
    assert set(found) == {"tuned", "few_shot", "trivial_majority"}
    few = found["few_shot"]
    metrics = {score["name"]: score["metrics"] for score in few["results"]["scores"]}
    assert metrics["accuracy"]["value"]["value"] == 0.4 and metrics["accuracy"]["low"]["value"] == pytest.approx(0.3)
    assert [sample["scores"]["accuracy"]["value"] for sample in few["samples"]] == [1, 1, 0, 0, 0]
    assert few["samples"][1]["input"] == prompt_of("Where is my card?", "\n<u>shown</u>\n<a>so")
    assert few["stats"]["model_usage"]["tunesmith/few_shot"] == {
        "input_tokens": 35,
        "output_tokens": 15,
        "total_tokens": 50,
    }


def test_several_references_are_several_targets(tmp_path: Path) -> None:
    rows = [("capital?", '["Paris", "the city"]'), ("other?", "one")]
    evidence = make_evidence(tmp_path / "run", "question_answering", rows, {"tuned": ["Paris", "one"]})
    write_as("inspect", evidence, tmp_path / "out", Options())
    assert [s["target"] for s in logs(tmp_path / "out")["tuned"]["samples"]] == [["Paris", "the city"], "one"]


def test_turns_with_tools_are_whole_for_inspect_and_not_for_promptfoo(tmp_path: Path) -> None:
    definition = '{"type": "function", "function": {"name": "weather"}}'
    rows = [("weather?", '{"name": "weather", "arguments": {}}'), ("thanks", "Bye")]
    evidence = make_evidence(tmp_path / "run", "tool_calls", rows, {"tuned": [right for _, right in rows]})
    called = Message("assistant", "", tool_calls=(ToolCall("c1", "weather", '{"city": "Rome"}'),))
    asked = (
        Message("user", "weather?", tools=Toolset((definition,))),
        called,
        Message("tool", "sunny", tool_call_id="c1"),
        Message("user", "And now?"),
    )
    evidence = with_conversations(evidence, {"tuned": [asked, asked]})
    write_as("inspect", evidence, tmp_path / "out", Options())
    sample = json.loads((tmp_path / "out/samples.jsonl").read_text().splitlines()[0])
    assert sample["metadata"]["tools"] == [json.loads(definition)]
    assert sample["input"][1]["tool_calls"] == [
        {"id": "c1", "function": "weather", "arguments": {"city": "Rome"}, "type": "function"}
    ]
    assert sample["input"][2] == {"role": "tool", "content": "sunny", "tool_call_id": "c1"}
    with pytest.raises(RecipeError, match="speak of tools"):
        write_as("promptfoo", evidence, tmp_path / "other", Options("http://127.0.0.1:1/v1", "m", "chat"))


def test_probabilities_and_drawn_answers_stand_beside_a_row(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "run")
    shown = evidence.candidates[0]
    rows = (replace(shown.answers[0], probabilities={"limit": 1.0}, samples=("limit", "other")), *shown.answers[1:])
    write_as("inspect", replace(evidence, candidates=(replace(shown, answers=rows),)), tmp_path / "out", Options())
    first, second = (sample["metadata"] for sample in logs(tmp_path / "out")[shown.name]["samples"][:2])
    assert (first["probabilities"], first["drawn"]) == ({"limit": 1.0}, ["limit", "other"])
    assert second.keys() == {"question"}


def test_half_characters_of_a_model_of_bytes_can_be_written(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "run", "generation", [("q", "a")] * 2, {"tuned": ["\udce4", "a"]})
    write_as("inspect", evidence, tmp_path / "out", Options())
    assert logs(tmp_path / "out")["tuned"]["samples"][0]["output"]["choices"][0]["message"]["content"] == "?"


@pytest.mark.skipif(importlib.util.find_spec("inspect_ai") is None, reason="inspect_ai is not installed")
def test_inspect_reads_what_is_written(tmp_path: Path) -> None:
    write_as("inspect", make_evidence(tmp_path / "run"), tmp_path / "out", Options())
    log: Any = importlib.import_module("inspect_ai.log")
    dataset: Any = importlib.import_module("inspect_ai.dataset")
    listed = log.list_eval_logs(str(tmp_path / "out/logs"))
    assert len(listed) == 3
    for one in map(log.read_eval_log, listed):
        assert one.status == "success" and len(one.samples) == 5
        assert {score.name for score in one.results.scores} == {"accuracy", "macro_f1"}
    samples = dataset.json_dataset(str(tmp_path / "out/samples.jsonl"))
    assert [(sample.input[-1].text, sample.target) for sample in samples] == INTENTS
