"""Every grader on real answers, and everything that can be wrong with one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import psutil
import pytest

from tunesmith.service.grading import Grade, check_grader, code, grade, read_grader, sample_of
from tunesmith.service.grading.code import LARGEST, run_code
from tunesmith.service.inner import Reply

CHECK = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
SIMILAR = {
    "type": "text_similarity",
    "name": "alike",
    "evaluation_metric": "fuzzy_match",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
CODE = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return 1.0\n"}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "m",
    "input": [{"role": "user", "content": "Score {{sample.output_text}} against {{item.answer}}"}],
}
LABEL = {
    "type": "label_model",
    "name": "tone",
    "model": "m",
    "input": [{"role": "developer", "content": "Tone?"}, {"role": "user", "content": "{{sample.output_text}}"}],
    "labels": ["kind", "rude"],
    "passing_labels": ["kind"],
}


def graded(grader: Mapping[str, Any], said: str = "Paris", post: Any = None, **item: Any) -> Grade:
    read = read_grader(grader)
    assert not isinstance(read, tuple), read
    return asyncio.run(grade(read, sample_of(said), {"answer": "Paris", **item}, post))


def says(content: str | None, *, finish: str = "stop", asked: list[Any] | None = None) -> Any:
    """A model that always says this."""

    async def post(path: str, body: Mapping[str, Any]) -> Reply:
        if asked is not None:
            asked.append((path, body))
        choice = {"message": {"content": content}, "finish_reason": finish}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
        return Reply(200, {"model": "shown", "choices": [choice], "usage": usage})

    return post


@pytest.mark.parametrize(
    ("operation", "said", "reward"),
    [
        ("eq", "Paris", 1), ("eq", "paris", 0), ("eq", "Paris ", 0),
        ("ne", "Paris", 0), ("ne", "Rome", 1),
        ("like", "It is Paris.", 1), ("like", "It is paris.", 0), ("like", "Par", 0),
        ("ilike", "It is PARIS.", 1), ("ilike", "Rome", 0),
    ],
)  # fmt: skip
def test_string_check(operation: str, said: str, reward: float) -> None:
    made = graded({**CHECK, "operation": operation}, said)
    assert (made.reward, made.passed) == (reward, bool(reward))


def test_text_similarity_passes_from_its_threshold_on() -> None:
    made = graded({**SIMILAR, "pass_threshold": 0.8}, "Pari")
    assert made.reward == pytest.approx(8 / 9) and made.passed
    assert not graded({**SIMILAR, "pass_threshold": 0.9}, "Pari").passed


def test_templates_over_json_and_missing_names() -> None:
    of_json = {**CHECK, "input": "{{sample.output_json.city}}"}
    assert graded(of_json, '{"city": "Paris"}').passed
    no_json = graded(of_json, "Paris")
    assert [one.kind for one in no_json.errors] == ["sample_parse_error"] and no_json.reward == 0
    other = graded(of_json, '{"town": "Paris"}')
    assert [one.kind for one in other.errors] == ["invalid_variable_error"]
    assert "there is: town" in other.errors[0].message and not other.passed


def test_score_model_asks_with_a_grammar_and_reads_the_number() -> None:
    asked: list[Any] = []
    grader = {**SCORE, "range": [0, 4], "pass_threshold": 2, "sampling_params": {"temperature": 0.7, "seed": 5}}
    made = graded(grader, post=says('{"result": 3.5}', asked=asked))
    assert (made.reward, made.passed) == (3.5, True)
    path, body = asked[0]
    assert path == "/v1/chat/completions" and (body["temperature"], body["seed"]) == (0.7, 5)
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["result"] == {"type": "number", "minimum": 0.0, "maximum": 4.0}
    assert [one["role"] for one in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "Score Paris against Paris" and "0 to 4" in body["messages"][0]["content"]
    answer = made.answer()
    assert answer["metadata"]["sampled_model_name"] == "shown" and answer["metadata"]["token_usage"] == 10
    assert answer["model_grader_token_usage_per_model"]["shown"]["cached_tokens"] == 2
    assert made.judgement is not None and made.judgement.said == '{"result": 3.5}'


@pytest.mark.parametrize(("threshold", "passed"), [(None, False), (1, True)])
def test_score_model_passes_from_the_middle_of_its_range_on(threshold: float | None, passed: bool) -> None:
    grader = {**SCORE, "range": [0, 4]} | ({"pass_threshold": threshold} if threshold is not None else {})
    assert graded(grader, post=says('{"result": 1.5}')).passed is passed


@pytest.mark.parametrize(("said", "reward"), [("kind", 1.0), ("rude", 0.0)])
def test_label_model(said: str, reward: float) -> None:
    asked: list[Any] = []
    made = graded(LABEL, post=says(f'{{"result": "{said}"}}', asked=asked))
    assert (made.reward, made.passed) == (reward, bool(reward))
    messages = asked[0][1]["messages"]
    # The grader's own instruction stays first, and is told the form of the answer.
    assert len(messages) == 2 and messages[0]["content"].startswith("Tone?\n\nReply with a JSON object")


@pytest.mark.parametrize("said", ['{"result": "other"}', "kind", None, '{"result": 7}', '["kind"]'])
def test_label_model_that_says_something_else(said: str | None) -> None:
    made = graded(LABEL, post=says(said))
    assert [one.kind for one in made.errors] == ["model_grader_parse_error"] and not made.passed


@pytest.mark.parametrize("said", ['{"result": 2}', '{"result": true}', '{"result": "1"}', '{"result": 0.3', ""])
def test_score_model_that_says_something_else(said: str) -> None:
    made = graded(SCORE, post=says(said, finish="length"))
    assert [one.kind for one in made.errors] == ["model_grader_parse_error"] and made.reward == 0


def test_model_that_refuses() -> None:
    async def post(path: str, body: Mapping[str, Any]) -> Reply:
        return Reply(404, {"error": {"message": "The model 'm' does not exist"}})

    made = graded(SCORE, post=post)
    told = made.metadata["errors"]
    assert told["model_grader_server_error"] and told["model_grader_server_error_details"] == (
        "The model 'm' does not exist"
    )
    assert sum(value is True for value in told.values()) == 1


def test_python_grader() -> None:
    source = "def grade(sample, item):\n    return len(sample['output_json']['a']) / item['most']\n"
    made = graded({**CODE, "source": source}, '{"a": [1, 2, 3]}', most=4)
    assert made.errors == () and made.reward == 0.75 and made.passed


def test_python_grader_gets_texts_as_data() -> None:
    said = "''' + __import__('os').getcwd() + '''\\"
    source = "def grade(sample, item):\n    return float(sample['output_text'] == item['copy'])\n"
    assert graded({**CODE, "source": source}, said, copy=said).reward == 1.0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 1 / 0", "ZeroDivisionError"),
        ("return 'good'", "grade returned str, not a number"),
        ("return True", "grade returned bool"),
        ("return float('nan')", "not a finite number"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError|BlockingIOError|OSError"),
        ("open('x', 'w').write('x')", "PermissionError"),
        ("raise SystemExit('1.0')", "SystemExit: 1.0"),
        ("import os; os._exit(0)", "ended the process"),
    ],
)
def test_python_grader_that_fails(body: str, says: str) -> None:
    made = graded({**CODE, "source": f"def grade(sample, item):\n    {body}\n"})
    assert [one.kind for one in made.errors] == ["python_grader_runtime_error"]
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(made.errors[0].message)


def test_python_grader_that_does_not_end() -> None:
    score = run_code("def grade(sample, item):\n    while True: pass\n", {}, {}, seconds=0.5)
    assert score.value is None and score.error == "longer than 0.5 s"


def test_a_killed_server_leaves_no_grader_running() -> None:
    """Not even one that sleeps, which no limit on computing time would end."""
    source = "import time\ndef grade(sample, item):\n    time.sleep(60)\n"
    script = f"from tunesmith.service.grading.code import run_code\nrun_code({source!r}, {{}}, {{}})"
    server = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": "src"})
    until = time.monotonic() + 20
    graders: list[psutil.Process] = []
    # Asleep is what the grader is; before that it computes or waits for the disk.
    while not any(one.status() == "sleeping" and one.cpu_times().user > 0 for one in graders):
        graders = psutil.Process(server.pid).children(recursive=True)
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(0.3)
    server.send_signal(signal.SIGKILL)
    server.wait()
    _, alive = psutil.wait_procs(graders, timeout=5)
    assert len(graders) == 1 and alive == []


def test_at_most_two_python_graders_at_a_time() -> None:
    source = "import time\ndef grade(sample, item):\n    time.sleep(0.3)\n    return time.time()\n"

    async def four() -> list[Grade]:
        read: Any = read_grader({**CODE, "source": source})
        return list(await asyncio.gather(*(grade(read, sample_of("x"), {}, None) for _ in range(4))))  # type: ignore[arg-type]

    ends = sorted(one.reward for one in asyncio.run(four()))
    assert ends[0] > 0 and ends[2] - ends[1] > 0.25, ends


def test_a_grader_that_nobody_waits_for_keeps_its_place_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun = threading.Event(), []

    def slow(*_: Any) -> code.CodeScore:
        begun.append(1)
        go_on.wait(10)
        return code.CodeScore(1.0)

    monkeypatch.setattr(code, "run_code", slow)

    async def cancelled_and_asked_again() -> int:
        tasks = [asyncio.create_task(code.run_code_beside("", {}, {})) for _ in range(code.AT_ONCE)]
        while len(begun) < code.AT_ONCE:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        more = [asyncio.create_task(code.run_code_beside("", {}, {})) for _ in range(5)]
        await asyncio.sleep(0.1)
        at_once = len(begun)
        go_on.set()
        assert [score.value for score in await asyncio.gather(*more)] == [1.0] * 5
        return at_once

    assert asyncio.run(cancelled_and_asked_again()) == code.AT_ONCE


def test_python_grader_has_2_gb_and_no_more() -> None:
    ours = "def grade(sample, item):\n    return float(len(bytearray({} * 2**30)) > 0)\n"
    assert run_code(ours.format(1), {}, {}).value == 1.0
    assert "MemoryError" in (run_code(ours.format(3), {}, {}).error or "")


def test_multi_grader() -> None:
    grader = {
        "type": "multi",
        "name": "both",
        "graders": {"exact": CHECK, "alike": SIMILAR, "judge": SCORE},
        "calculate_output": "0.5 * exact + 0.25 * alike + min(judge, 0.2)",
        "pass_threshold": 0.9,
    }
    made = graded(grader, post=says('{"result": 1}'))
    assert made.reward == pytest.approx(0.95) and made.passed
    assert made.sub_rewards == {"exact": 1.0, "alike": 1.0, "judge": 1.0}
    assert made.answer()["sub_rewards"] == made.sub_rewards and made.usage["shown"].calls == 1


def test_multi_grader_without_a_value() -> None:
    grader = {"type": "multi", "name": "both", "graders": {"exact": CHECK}, "calculate_output": "1 / (exact - 1)"}
    made = graded(grader)
    assert made.reward == 0 and [one.kind for one in made.errors] == ["formula_parse_error"]


def test_an_error_in_a_part_is_not_hidden_by_the_formula() -> None:
    broken = {**CHECK, "input": "{{sample.output_json.x}}"}
    grader = {"type": "multi", "name": "both", "graders": {"exact": broken}, "calculate_output": "1 - exact"}
    made = graded(grader)
    assert (made.reward, made.passed) == (0.0, False) and made.errors[0].kind == "sample_parse_error"


def test_one_grader_in_place_of_the_mapping() -> None:
    # As the official client's types have it.
    grader = {"type": "multi", "name": "both", "graders": CHECK, "calculate_output": "exact / 2"}
    assert check_grader(grader, where="jobs") == () and graded(grader).reward == 0.5


@pytest.mark.parametrize("grader", [CHECK, SIMILAR, CODE, SCORE, LABEL])
def test_nothing_is_wrong_with_these(grader: dict[str, Any]) -> None:
    assert check_grader(grader, where="jobs") == ()
    more = {"pass_threshold": 0.5} if grader is SIMILAR else {}
    assert check_grader({**grader, **more}, where="evals") == ()


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        (CHECK | {"operation": "regex"}, "g.operation", "'eq', 'ne', 'like' or 'ilike'"),
        (CHECK | {"x": 1}, "g.x", "Unknown parameter: 'g.x'"),
        (CHECK | {"name": ""}, "g.name", "at least 1"),
        (CHECK | {"name": 3}, "g.name", "expected a string"),
        (CHECK | {"input": "{{items.a}}"}, "g.input", "does not begin with 'item.'"),
        ({"type": "string_check"}, "g.name", "Missing required parameter: 'g.name'"),
        ({"type": "regex"}, "g", '"regex"'),
        ({}, "g", "'type' is missing"),
        (None, "g", "expected an object"),
        (SIMILAR | {"evaluation_metric": "rouge_6"}, "g.evaluation_metric", "rouge_5"),
        (SIMILAR | {"evaluation_metric": "cosine"}, "g.evaluation_metric", "offered for evals only"),
        (CODE | {"source": "def f(): pass"}, "g.source", "no function 'grade(sample, item)'"),
        (CODE | {"source": "def grade(sample): pass"}, "g.source", "takes 1 arguments"),
        (CODE | {"source": "def grade(sample, item:"}, "g.source", "not Python: line 1"),
        (CODE | {"source": "#" * (LARGEST + 1)}, "g.source", "256,001 bytes"),
        (SCORE | {"range": [1, 0]}, "g.range", "lower bound first"),
        (SCORE | {"range": [0]}, "g.range", "at least 2"),
        (SCORE | {"pass_threshold": 2}, "g.pass_threshold", "outside the range [0, 1]"),
        (SCORE | {"input": []}, "g.input", "at least 1"),
        (SCORE | {"input": [{"role": "robot", "content": "x"}]}, "g.input[0].role", "expected 'user', 'assistant'"),
        (SCORE | {"sampling_params": {"temperature": -1}}, "g.sampling_params.temperature", ">= 0"),
        (LABEL | {"passing_labels": ["nice"]}, "g.passing_labels", "'nice' is not one of the labels"),
        (LABEL | {"labels": ["kind", "kind"]}, "g.labels", "given twice"),
        (
            {"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "a + b"},
            "g.calculate_output",
            "'b' is no grader; there are 'a'",
        ),
        (
            {"type": "multi", "name": "m", "graders": {"a-b": CHECK}, "calculate_output": "1"},
            "g.graders.a-b",
            "cannot stand in a formula",
        ),
        (
            {"type": "multi", "name": "m", "graders": {"a": {"type": "multi"}}, "calculate_output": "a"},
            "g.graders.a",
            'got "multi" instead',
        ),
    ],
)
def test_what_is_wrong(change: Any, param: str, says: str) -> None:
    problems = check_grader(change, where="jobs", param="g")
    assert any(one.param == param and says in one.message for one in problems), problems


def test_everything_that_is_wrong_at_once() -> None:
    grader = {
        "type": "multi",
        "name": "m",
        "graders": {"a": CHECK | {"input": "{{x}}"}, "b": SCORE | {"range": [2, 1]}},
        "calculate_output": "a +",
    }
    assert [one.param for one in check_grader(grader, where="jobs")] == [
        "grader.graders.a.input",
        "grader.graders.b.range",
        "grader.calculate_output",
    ]


def test_evals_need_a_threshold_and_have_no_embeddings() -> None:
    (problem,) = check_grader(SIMILAR, where="evals", param="testing_criteria[0]")
    assert (problem.param, problem.code) == ("testing_criteria[0].pass_threshold", "missing_required_parameter")
    (problem,) = check_grader(
        SIMILAR | {"evaluation_metric": "cosine", "pass_threshold": 0.5}, where="evals", param="c"
    )
    assert "no embedding model is registered" in problem.message
