"""Checking and trying graders over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.service.beside import Beside, last_text, served_beside
from tests.service.grading.test_graders import CHECK, CODE, LABEL, SCORE
from tests.service.scripted import ScriptedEngine


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    engine = ScriptedEngine(lambda ask: '{"result": 0.75}' if "Paris" in last_text(ask) else '{"result": 0}')
    with served_beside(tmp_path_factory.mktemp("home"), engine, working=False, python_graders=True) as found:
        yield found


def run(beside: Beside, grader: Any, said: str, **more: Any) -> Any:
    return beside.client.fine_tuning.alpha.graders.run(grader=grader, model_sample=said, **more)


def test_validate_answers_with_the_grader(beside: Beside) -> None:
    graders = beside.client.fine_tuning.alpha.graders
    for grader in (CHECK, CODE, {**SCORE, "model": "gpt-4o"}):
        answer = graders.validate(grader=grader)  # type: ignore[arg-type]
        assert answer.grader is not None and answer.grader.name == grader["name"]
        assert answer.to_dict()["grader"] == grader


def test_validate_tells_everything(beside: Beside) -> None:
    bad: Any = {**SCORE, "model": "nothing", "range": [1, 0], "x": 1}
    with pytest.raises(openai.BadRequestError) as caught:
        beside.client.fine_tuning.alpha.graders.validate(grader=bad)
    assert caught.value.param == "grader.x" and caught.value.code == "unknown_parameter"
    del bad["x"]
    with pytest.raises(openai.BadRequestError) as caught:
        beside.client.fine_tuning.alpha.graders.validate(grader=bad)
    body: Any = caught.value.body
    assert [one["param"] for one in body["details"]] == ["grader.range", "grader.model"]
    assert body["details"][1]["code"] == "model_not_found"


def test_run_a_string_check(beside: Beside) -> None:
    answer = run(beside, CHECK, "Paris", item={"answer": "Paris"})
    assert answer.reward == 1.0 and answer.metadata.type == "string_check" and answer.metadata.name == "exact"
    assert answer.metadata.execution_time > 0 and answer.metadata.token_usage is None
    errors = answer.metadata.errors
    assert errors.formula_parse_error is errors.python_grader_runtime_error is errors.other_error is False
    assert errors.api_model_grader_parse_error is errors.unresponsive_reward_error is False
    assert answer.sub_rewards == {} and answer.api_model_grader_token_usage_per_model == {}


def test_run_with_the_older_field(beside: Beside) -> None:
    grader = {**CHECK, "reference": "{{item.reference_answer}}"}
    answer = run(beside, grader, "Paris", extra_body={"reference_answer": "Paris"})
    assert answer.reward == 1.0


def test_run_that_goes_wrong(beside: Beside) -> None:
    answer = run(beside, CHECK, "Paris", item={})
    assert answer.reward == 0.0 and answer.metadata.errors.invalid_variable_error is True
    assert "nothing is there" in answer.metadata.errors.invalid_variable_error_details


def test_run_a_model(beside: Beside) -> None:
    answer = run(beside, {**SCORE, "model": "gpt-4o"}, "Paris", item={"answer": "Paris"})
    assert answer.reward == 0.75 and answer.metadata.sampled_model_name == "gpt-4o-2024-08-06"
    usage = answer.api_model_grader_token_usage_per_model["gpt-4o-2024-08-06"]
    assert answer.metadata.token_usage == usage["total_tokens"] > 0


def test_run_python_and_multi(beside: Beside) -> None:
    source = "def grade(sample, item):\n    return len(sample['output_text']) / 10\n"
    grader: Any = {
        "type": "multi",
        "name": "all",
        "graders": {"code": {**CODE, "source": source}, "judge": {**SCORE, "model": "gpt-4o"}},
        "calculate_output": "max(code, judge) + floor(code)",
    }
    answer = run(beside, grader, "Paris", item={"answer": "Paris"})
    assert answer.reward == 0.75 and answer.sub_rewards == {"code": 0.5, "judge": 0.75}
    assert answer.metadata.scores == answer.sub_rewards


def test_a_label_model_is_a_grader_too(beside: Beside) -> None:
    with pytest.raises(openai.BadRequestError, match="does not exist"):
        run(beside, LABEL, "x")


@pytest.mark.parametrize("body", [{}, {"grader": CHECK}, {"grader": CHECK, "model_sample": 3}, {"grader": []}])
def test_bodies_that_do_not_fit(beside: Beside, body: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        beside.client.post("/fine_tuning/alpha/graders/run", body=body, cast_to=object)


def test_without_leave_python_does_not_run(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine(), working=False) as beside:
        with pytest.raises(openai.BadRequestError, match="switched off"):
            run(beside, CODE, "x")
        with pytest.raises(openai.BadRequestError, match="switched off"):
            multi = {"type": "multi", "name": "m", "graders": {"c": CODE}, "calculate_output": "c"}
            run(beside, multi, "x")
