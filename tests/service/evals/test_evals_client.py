"""Evals from creation to output items through the official client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.service.beside import Beside
from tests.service.evals.conftest import ALIKE, EXACT, ROWS, completions, eval_of, finished, upload

JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "Judge",
    "model": "gpt-4o",
    "input": [{"role": "user", "content": "Is {{sample.output_text}} right?"}],
    "pass_threshold": 0.5,
}


def test_from_creation_to_output_items(beside: Beside) -> None:
    made = eval_of(beside, EXACT, ALIKE, metadata={"team": "a"})
    assert made.object == "eval" and made.id.startswith("eval_") and made.metadata == {"team": "a"}
    assert made.data_source_config.schema_["properties"]["item"]["required"] == ["land", "city"]
    assert set(made.data_source_config.schema_["properties"]) == {"item", "sample"}
    run = finished(beside, made, completions(), name="first", metadata={"try": "1"})
    assert run.status == "completed" and run.object == "eval.run" and run.name == "first" and run.model == "gpt-4o-mini"
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (5, 4, 1, 0)
    exact, alike = run.per_testing_criteria_results
    assert exact.testing_criteria.startswith("Exact-") and (exact.passed, exact.failed) == (4, 1)
    assert exact.pass_rate == 0.8 and exact.pass_rate_interval == pytest.approx([0.3755, 0.9638], abs=1e-4)
    assert (alike.passed, alike.failed) == (4, 1) and alike.mean_score_interval[0] < alike.mean_score < 1
    (usage,) = run.per_model_usage
    assert usage.run_model_name == "gpt-4o-mini-2024-07-18" and usage.invocation_count == 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    items = list(beside.client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=2))
    assert [one.datasource_item for one in items] == [row["item"] for row in ROWS]
    assert [one.status for one in items] == ["pass"] * 4 + ["fail"]
    last = items[-1]
    assert last.results[0].passed is False and last.results[0].score == 0.0 and last.results[1].score < 0.9
    assert [one.role for one in last.sample.input] == ["developer", "user"]
    assert last.sample.input[1].content == "Capital of Norway?" and last.sample.output[0].content == "Bergen"
    assert (last.sample.temperature, last.sample.top_p, last.sample.seed) == (1.0, 1.0, 42)
    assert last.sample.finish_reason == "stop" and last.sample.error is None and last.sample.usage.prompt_tokens > 0
    fetched = beside.client.evals.runs.output_items.retrieve(last.id, eval_id=made.id, run_id=run.id)
    assert fetched.model_dump() == last.model_dump()
    failing = beside.client.evals.runs.output_items.list(run.id, eval_id=made.id, status="fail")
    assert [one.id for one in failing] == [last.id]


def test_settings_reach_the_model(beside: Beside) -> None:
    beside.engine.asks.clear()
    made = eval_of(beside)
    sampling = {"temperature": 0.5, "seed": 7, "top_p": 0.9, "max_completion_tokens": 3}
    run = finished(beside, made, completions(ROWS[:1], sampling_params=sampling))
    decoding = beside.engine.asks[0].decoding
    assert (decoding.temperature, decoding.seed, decoding.top_p) == (0.5, 7, 0.9)
    (item,) = beside.client.evals.runs.output_items.list(run.id, eval_id=made.id)
    # Three tokens are three letters here.
    assert item.sample.output[0].content == "Par" and item.sample.finish_reason == "length"
    assert item.sample.max_completion_tokens == 3


def test_a_model_grades(beside: Beside) -> None:
    run = finished(beside, made := eval_of(beside, JUDGE), completions(ROWS[:2]))
    paris, rome = beside.client.evals.runs.output_items.list(run.id, eval_id=made.id)
    assert (paris.results[0].score, rome.results[0].score) == (1.0, 0.25)
    assert paris.results[0].sample is not None and paris.results[0].sample["output"][0]["content"] == '{"result": 1}'
    used = {one.run_model_name: one.invocation_count for one in run.per_model_usage}
    assert used == {"gpt-4o-mini-2024-07-18": 2, "gpt-4o-2024-08-06": 2}


def test_rows_with_their_own_answers(beside: Beside, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [row | {"sample": {"output_text": said}} for row, said in zip(ROWS, ["Paris", "Milan"], strict=False)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8-sig")
    beside.engine.asks.clear()
    data: Any = {"type": "jsonl", "source": {"type": "file_id", "id": upload(beside, path)}}
    run = finished(beside, eval_of(beside, EXACT, ALIKE), data)
    assert (run.result_counts.passed, run.result_counts.failed) == (1, 1)
    assert beside.engine.asks == [] and list(run.per_model_usage) == []


def test_a_file_may_go_while_its_run_waits(beside: Beside, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    file = upload(beside, path)
    made = eval_of(beside)
    data = completions() | {"source": {"type": "file_id", "id": file}}
    run = beside.client.evals.runs.create(made.id, data_source=data)
    beside.client.files.delete(file)
    run = beside.wait(lambda: beside.client.evals.runs.retrieve(run.id, eval_id=made.id), ("completed", "failed"))
    assert run.status == "completed" and run.result_counts.total == 5


def test_messages_that_stand_in_the_row(beside: Beside) -> None:
    schema = {"type": "object", "properties": {"input": {"type": "array"}}}
    config: Any = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    said = {**EXACT, "reference": "{{item.city}}"}
    made = beside.client.evals.create(data_source_config=config, testing_criteria=[said])  # type: ignore[list-item]
    item = {"input": [{"role": "user", "content": "Capital of Spain?"}], "city": "Madrid"}
    data = completions([{"item": item}], input_messages={"type": "item_reference", "item_reference": "item.input"})
    assert finished(beside, made, data).result_counts.passed == 1


@pytest.mark.parametrize("kind", ["logs", "stored_completions"])
def test_stored_completions_graded_and_asked_again(beside: Beside, kind: str) -> None:
    for land in ("Greece", "Norway"):
        beside.client.chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": f"Capital of {land}?"}],
            store=True,
            metadata={"use": kind},
        )
    config: Any = {"type": kind, "metadata": {"use": kind}}
    criterion: Any = {**EXACT, "operation": "like", "reference": "e"}
    made = beside.client.evals.create(data_source_config=config, testing_criteria=[criterion])
    assert set(made.data_source_config.schema_["properties"]) == {"item", "sample"}
    source = {"type": "stored_completions", "metadata": {"use": kind}}
    run = finished(beside, made, {"type": "completions", "source": source})
    assert run.result_counts.total == 2 and run.result_counts.passed == 2  # Athens and Bergen
    items = list(beside.client.evals.runs.output_items.list(run.id, eval_id=made.id))
    assert [one.sample.output[0].content for one in items] == ["Athens", "Bergen"]
    again = {
        "type": "completions",
        "source": source | {"limit": 1},
        "model": "gpt-4.1",
        "input_messages": {"type": "item_reference", "item_reference": "item.input"},
    }
    run = finished(beside, made, again)
    assert run.result_counts.total == 1 and run.per_model_usage[0].invocation_count == 1


def test_responses(beside: Beside) -> None:
    data = completions(type="responses", sampling_params={"max_completion_tokens": 50, "temperature": 0.1})
    run = finished(beside, made := eval_of(beside), data)
    assert (run.result_counts.passed, run.result_counts.failed) == (4, 1)
    item = next(iter(beside.client.evals.runs.output_items.list(run.id, eval_id=made.id)))
    assert item.sample.output[0].content == "Paris" and item.sample.usage.completion_tokens == 5


def test_change_list_and_delete(beside: Beside) -> None:
    made = eval_of(beside, metadata={"a": "b"})
    changed = beside.client.evals.update(made.id, name="renamed")
    assert changed.name == "renamed" and changed.metadata == {"a": "b"}
    assert beside.client.evals.retrieve(made.id).model_dump() == changed.model_dump()
    run = finished(beside, made, completions(ROWS[:1]))
    listed = list(beside.client.evals.list(limit=3, order="desc"))
    assert listed[0].id == made.id and len({one.id for one in listed}) == len(listed)
    assert [one.id for one in beside.client.evals.runs.list(made.id, status="completed")] == [run.id]
    assert list(beside.client.evals.runs.list(made.id, status="failed").data) == []
    gone = beside.client.evals.runs.delete(run.id, eval_id=made.id)
    assert gone.deleted and gone.run_id == run.id
    with pytest.raises(openai.NotFoundError, match="No such Eval run object"):
        beside.client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert beside.client.evals.delete(made.id).eval_id == made.id
    with pytest.raises(openai.NotFoundError, match="No such Eval object"):
        beside.client.evals.retrieve(made.id)


def test_errors_of_a_model_are_told_row_by_row(beside: Beside) -> None:
    # Far more than the context of the scripted engine.
    rows = [ROWS[0], {"item": {"land": "x" * 6_000, "city": "y"}}]
    run = finished(beside, made := eval_of(beside), completions(rows))
    assert run.status == "completed" and (run.result_counts.passed, run.result_counts.errored) == (1, 1)
    good, bad = beside.client.evals.runs.output_items.list(run.id, eval_id=made.id)
    assert bad.status == "error" and bad.sample.error.code == "context_length_exceeded" and bad.results == []
    assert good.status == "pass"


def refused(beside: Beside, made: Any, data: Any) -> Any:
    with pytest.raises(openai.BadRequestError) as caught:
        beside.client.evals.runs.create(made.id, data_source=data)
    return caught.value


def test_rows_that_do_not_fit_are_told_before_anything_runs(beside: Beside) -> None:
    rows = [ROWS[0], {"item": {"land": 3, "city": "x"}}, {"item": {"land": "x"}}]
    error = refused(beside, eval_of(beside), completions(rows))
    messages = [one["message"] for one in error.body["details"]]
    assert len(messages) == 2 and error.param == "data_source.source"
    assert "row 2, item.land: 3 is not of type 'string'" in messages[0]
    assert "row 3, item: 'city' is a required property" in messages[1]


def test_broken_lines_of_a_file(beside: Beside, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"item": {"land": "a", "city": "b"}}\n{"land": "a"}\n{"item": 3}\nnot json\n{"item": {"a": NaN}}\n'
    )
    file = upload(beside, path)
    error = refused(beside, eval_of(beside), completions() | {"source": {"type": "file_id", "id": file}})
    assert [one["message"].split(": ", 2)[1] for one in error.body["details"]] == [
        "line 2",
        "line 3",
        "line 4",
        "line 5",
    ]


def test_answers_that_no_file_can_hold(beside: Beside, tmp_path: Path) -> None:
    """Half of a surrogate pair may stand in a model's answer that a user has kept."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"item": {"land": "x", "city": "y"}, "sample": {"output_text": "\\ud800"}}\n')
    error = refused(
        beside, eval_of(beside), {"type": "jsonl", "source": {"type": "file_id", "id": upload(beside, path)}}
    )
    assert "line 1: it is not valid JSON: a text in it holds half of a surrogate pair" in error.body["message"]


def test_names_that_no_row_has(beside: Beside) -> None:
    made = eval_of(beside, {**EXACT, "reference": "{{item.capital}}"})
    error = refused(beside, made, completions(ROWS[:1]))
    assert "row 1: there is no 'item.capital'; there is: city, land" in error.body["message"]
    data = completions(ROWS[:1])
    data["input_messages"]["template"][1]["content"] = "{{item.country}} {{sample.output_text}}"
    error = refused(beside, eval_of(beside), data)
    assert "there is no 'sample' before" in error.body["message"]


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"model": None}, "data_source.model", "Missing required"),
        ({"model": "nothing"}, "data_source.model", "does not exist"),
        ({"source": {"type": "file_id", "id": "file-x"}}, "data_source.source.id", "No such File object: file-x"),
        ({"source": {"type": "file_content", "content": []}}, "data_source.source", "no rows"),
        ({"source": {"type": "stored_completions", "model": "z"}}, "data_source.source", "no stored answer fits"),
        ({"source": {"type": "web"}}, "data_source.source", "'file_content', 'file_id', 'stored_completions'"),
        ({"input_messages": None}, "data_source.input_messages", "Missing required"),
        ({"sampling_params": {"temperature": 9}}, "data_source.sampling_params.temperature", "<= 2"),
        ({"sampling_params": {"heat": 9}}, "data_source.sampling_params.heat", "Unknown parameter"),
        ({"sampling_params": {"tools": [{"type": "function"}]}}, "tools[0].function", "a field 'function'"),
        ({"sampling_params": {"response_format": {"type": "xml"}}}, "response_format.type", "xml"),
        ({"type": "other"}, "data_source", "'jsonl', 'completions', 'responses'"),
    ],
)
def test_a_run_that_cannot_be(beside: Beside, change: dict[str, Any], param: str, says: str) -> None:
    data = {name: value for name, value in (completions() | change).items() if value is not None}
    error = refused(beside, eval_of(beside), data)
    assert error.param == param and says in error.body["message"]


def test_an_eval_that_cannot_be(beside: Beside) -> None:
    config: Any = {"type": "custom", "item_schema": {"type": "objekt"}}
    criteria: Any = [{**EXACT, "operation": "is"}, {**ALIKE, "pass_threshold": None}, JUDGE | {"model": "nothing"}]
    with pytest.raises(openai.BadRequestError) as caught:
        beside.client.evals.create(data_source_config=config, testing_criteria=criteria)
    assert [one["param"] for one in caught.value.body["details"]] == [  # type: ignore[index]
        "data_source_config.item_schema",
        "testing_criteria[0].operation",
        "testing_criteria[1].pass_threshold",
        "testing_criteria[2].model",
    ]


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "leads outside the schema"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "leads outside the schema"),
    ],
)
def test_schemas_fetch_nothing(beside: Beside, schema: dict[str, Any], says: str) -> None:
    config: Any = {"type": "custom", "item_schema": schema}
    with pytest.raises(openai.BadRequestError, match=says):
        beside.client.evals.create(data_source_config=config, testing_criteria=[EXACT])  # type: ignore[list-item]


def test_a_schema_that_refers_to_nothing(beside: Beside) -> None:
    config: Any = {"type": "custom", "item_schema": {"properties": {"a": {"$ref": "#/$defs/x"}}}}
    made = beside.client.evals.create(data_source_config=config, testing_criteria=[EXACT])  # type: ignore[list-item]
    error = refused(beside, made, completions([{"item": {"a": 1}}]))
    assert error.param == "data_source_config.item_schema"


def test_nulls_are_kept_as_they_were_sent(beside: Beside) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [None, 1]}, "b": {"const": None}}, "required": ["b"]}
    config: Any = {"type": "custom", "item_schema": schema}
    criterion: Any = {**EXACT, "input": "{{item.a}}", "reference": "null"}
    made = beside.client.evals.create(data_source_config=config, testing_criteria=[criterion])
    shown: Any = made.data_source_config.schema_["properties"]
    assert shown == {"item": schema}
    item = {"a": None, "b": None}
    run = finished(beside, made, {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": item}]}})
    assert run.result_counts.passed == 1 and run.data_source.source.content[0].item == item
    (kept,) = beside.client.evals.runs.output_items.list(run.id, eval_id=made.id)
    assert kept.datasource_item == item


def test_python_graders_are_off(beside: Beside) -> None:
    code: Any = {"type": "python", "name": "c", "source": "def grade(sample, item):\n    return 1\n"}
    with pytest.raises(openai.BadRequestError, match="switched off") as caught:
        eval_of(beside, code)
    assert caught.value.code == "python_graders_disabled"
