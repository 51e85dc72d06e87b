"""A run as a promptfoo config: what is asked, what is right, and that its checks agree with our metrics."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Template

from tests.evaluation.neighbours.made import INTENTS, make_evidence, prompt_of
from tunesmith.errors import RecipeError
from tunesmith.evaluation.neighbours import Options, write_as

HARD = ("a {% endraw %} {{ b }} {%- raw %} {# c #} {", "other")
NODE = shutil.which("node")
with_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def written(folder: Path) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Config, rows and tests."""
    config = yaml.safe_load((folder / "promptfooconfig.yaml").read_text(encoding="utf-8"))
    rows, tests = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("rows.json", "tests.json"))
    return config, rows, tests


def test_the_config_asks_recorded_answers_with_the_exact_prompts(tmp_path: Path) -> None:
    made = write_as("promptfoo", make_evidence(tmp_path / "run"), tmp_path / "out", Options())
    config, rows, tests = written(tmp_path / "out")
    assert [p["label"] for p in config["providers"]] == [
        "recorded few_shot",
        "recorded trivial_majority",
        "recorded tuned",
    ]
    assert {p["label"] for p in config["prompts"]} == {"few_shot", "trivial_majority", "tuned"}
    assert [row["prompts"]["tuned"] for row in rows] == [prompt_of(q) for q, _ in INTENTS]
    assert rows[0]["prompts"]["trivial_majority"] == "My card never came"
    assert rows[2]["answers"]["few_shot"] == {"text": "lost card", "promptTokens": 7, "answerTokens": 3}
    assert [test["vars"]["id"] for test in tests] == [row["id"] for row in rows]
    # promptfoo would load a variable that begins like a file, and fill in what looks like a placeholder.
    assert tests[3]["vars"]["question"] == " file://etc/passwd"
    assert tests[2]["vars"]["question"] == 'Raise my limit {{ "{" }}{ now }}'
    assert tests[4]["vars"]["question"] == 'He said: "yes" {{ "{" }}% if %}'
    assert config["defaultTest"]["assert"] == [
        {
            "type": "javascript",
            "value": "file://checks.cjs:label",
            "metric": "accuracy",
            "config": {"closing": ""},
        }
    ]
    assert set(made.files) >= {"checks.cjs", "prompts.cjs", "recorded.cjs", "promptfooconfig.yaml"}


def test_an_endpoint_and_remote_models_are_asked_where_they_are_given(tmp_path: Path) -> None:
    remote = {"url": "https://api.example.com/v1", "model": "big", "api_key_env": "BIG_KEY", "prompt_price": 2.0}
    answers = {name: [right for _, right in INTENTS] for name in ("tuned", "zero_shot")}
    evidence = make_evidence(
        tmp_path / "run", answers=answers, recipe={"remotes": {"large": remote, "own": {**remote, "api_key_env": None}}}
    )
    write_as("promptfoo", evidence, tmp_path / "out", Options("http://127.0.0.1:1/v1", "mine"))
    config, rows, _ = written(tmp_path / "out")
    served, large, own = config["providers"][-3:]
    # Without a key of its own an endpoint would be sent that of OpenAI.
    assert served["config"]["apiKey"] == own["config"]["apiKey"] == "none" and "apiKey" not in large["config"]
    assert served["id"] == "openai:completion:mine" and served["prompts"] == ["tuned"]
    assert served["config"]["stop"] == ["</u>"] and served["config"]["max_tokens"] == 40
    assert large["id"] == "openai:chat:big" and large["prompts"] == ["zero_shot_chat"]
    assert large["config"]["apiKeyEnvar"] == "BIG_KEY" and large["config"]["inputCost"] == pytest.approx(2e-6)
    assert rows[0]["prompts"]["zero_shot_chat"][1] == {"role": "user", "content": "My card never came"}
    write_as("promptfoo", evidence, tmp_path / "out", Options("http://127.0.0.1:1/v1", "mine", "chat"))
    served = written(tmp_path / "out")[0]["providers"][-3]
    assert (served["id"], served["prompts"]) == ("openai:chat:mine", ["tuned_chat"])
    with pytest.raises(RecipeError, match="an endpoint is an address and a model"):
        write_as("promptfoo", evidence, tmp_path / "out", Options("http://127.0.0.1:1/v1"))
    with pytest.raises(RecipeError, match="holds a user name or password"):
        write_as("promptfoo", evidence, tmp_path / "out", Options("http://me:secret@127.0.0.1:1/v1", "mine"))
    with pytest.raises(RecipeError, match="no place in evidence for inspect"):
        write_as("inspect", evidence, tmp_path / "other", Options("http://127.0.0.1:1/v1", "mine"))


def test_an_endpoint_is_only_asked_for_answers_that_were_free(tmp_path: Path) -> None:
    right = [right for _, right in INTENTS]
    evidence = make_evidence(tmp_path / "run", answers={"tuned": right, "tuned_free": right})
    held, free = (
        replace(shown, facts={"decoding": way})
        for shown, way in zip(evidence.candidates, ("scored", "free"), strict=True)
    )
    assert (held.name, free.name) == ("tuned", "tuned_free")
    options = Options("http://127.0.0.1:1/v1", "mine")
    write_as("promptfoo", replace(evidence, candidates=(held, free)), tmp_path / "out", options)
    assert written(tmp_path / "out")[0]["providers"][-1]["prompts"] == ["tuned_free"]
    made = write_as("promptfoo", replace(evidence, candidates=(held,)), tmp_path / "out", options)
    assert [p["label"] for p in written(tmp_path / "out")[0]["providers"]] == ["recorded tuned"]
    assert "is not asked" in made.notes[0]


def test_turns_that_are_not_known_are_never_guessed(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "run", conversations=False)
    with pytest.raises(RecipeError, match="turns of tuned's prompts are not known"):
        write_as("promptfoo", evidence, tmp_path / "out", Options("http://127.0.0.1:1/v1", "mine", "chat"))
    assert not (tmp_path / "out").exists()
    remote = {"large": {"url": "https://api.example.com/v1", "model": "big"}}
    made = write_as(
        "promptfoo", make_evidence(tmp_path / "other", recipe={"remotes": remote}), tmp_path / "out", Options()
    )
    assert made.notes == ("large is not asked: no turns are known of it or of zero_shot among the candidates written",)


@pytest.mark.parametrize(
    ("task_type", "rows", "kinds", "said"),
    [
        ("summarisation", [("a b c", "a b"), ("d e f", "d")], {"rouge-n"}, "rouge-n against one reference"),
        ("translation", [("Hund", "the dog"), ("Katze", "the cat")], {"bleu"}, "bleu against one reference"),
        ("code", [("double", '{"code": "x = 1", "test_list": ["assert x"]}')], set(), "code is not run by promptfoo"),
    ],
)
def test_what_promptfoo_cannot_say_is_said(
    tmp_path: Path, task_type: str, rows: list[tuple[str, str]], kinds: set[str], said: str
) -> None:
    evidence = make_evidence(tmp_path / "run", task_type, rows, {"tuned": [right for _, right in rows]})
    made = write_as("promptfoo", evidence, tmp_path / "out", Options())
    assert any(said in note for note in made.notes)
    config, _, tests = written(tmp_path / "out")
    assert config["defaultTest"]["assert"] == []
    asserts = [one for test in tests for one in test.get("assert", ())]
    assert {one["type"] for one in asserts} == kinds
    assert [one["value"] for one in asserts] == [right for _, right in rows if kinds]


CHECKED: dict[str, tuple[list[tuple[str, str]], list[str], dict[str, Any], dict[str, str]]] = {
    "classification": (
        INTENTS,
        ["Lost_Card", '"lost card".', "limit\nor other", "the limit", "other!"],
        {},
        {"label": "accuracy"},
    ),
    "multi_label": (
        [("a", "red; blue"), ("b", "red"), ("c", "none"), ("d", "blue")],
        ["Blue; red", "red; blue", "none.", "[]"],
        {"labels": ["red", "blue"]},
        {"labels": "exact_match"},
    ),
    "maths": (
        [("a", "2"), ("b", "1,000"), ("c", "0.5"), ("d", "7")],
        ["1 + 1 is 2", "#### 1000", "none", "8"],
        {},
        {"number": "accuracy"},
    ),
    "extraction": (
        [("a", '["flour", "eggs"]'), ("b", '["salt"]'), ("c", "[]"), ("d", '["a"]')],
        ['Sure: ["Eggs", "flour"]!', '["salt", "salt"]', "[]", "nothing"],
        {"answer_form": "list"},
        {"items": "exact_match", "json": "valid_json"},
    ),
    "question_answering": (
        [
            *(("a", '["Paris", "the city of light"]'), ("b", "two words"), ("c", "one"), ("d", "A"), ("e", "%")),
            *(("f", "[]"), ("g", '["", "ña"]'), ("h", "東京タワー"), ("i", "in กรุงเทพ"), ("j", "[]"), ("k", "")),
        ],
        [
            *(
                "City of light.",
                "two",
                "One!",
                "the",
                "%",
                "No answer.",
                "ñ",
                "東京 3",
                "กรุงเ in",
                "something",
                "no answer",
            ),
        ],
        {},
        {"reference": "exact_match", "wordShare": "token_f1"},
    ),
    "tool_calls": (
        [("a", '{"name": "f", "arguments": {"x": 1, "y": "A  b"}}'), ("b", "You are welcome.")],
        ['<tool_call>{"name": "f", "arguments": {"y": "a b", "x": 1}}</tool_call>', '{"name": "f", "arguments": {}}'],
        {},
        {"calls": "call_accuracy"},
    ),
}


@with_node
@pytest.mark.parametrize("task_type", CHECKED)
def test_checks_agree_with_our_metrics_row_by_row(tmp_path: Path, task_type: str) -> None:
    rows, texts, spec, checks = CHECKED[task_type]
    evidence = make_evidence(tmp_path / "run", task_type, rows, {"tuned": texts}, spec)
    write_as("promptfoo", evidence, tmp_path / "out", Options())
    asserts = written(tmp_path / "out")[0]["defaultTest"]["assert"]
    settings = {one["value"].removeprefix("file://checks.cjs:"): one["config"] for one in asserts}
    assert checks.keys() <= settings.keys()
    calls = [
        [check, text, {"vars": {"id": f"row{i}"}, "config": settings[check]}]
        for check in checks
        for i, text in enumerate(texts)
    ]
    run = "print(calls.map(([check, text, context]) => checks[check](text, context).score))"
    said = _node(tmp_path / "out", f"const checks = require('./checks.cjs'); const calls = {json.dumps(calls)}; {run}")
    ours = [answer.scores[metric] for metric in checks.values() for answer in evidence.candidates[0].answers]
    assert said == pytest.approx(ours)
    assert len(set(ours)) > 1


@with_node
def test_scripts_give_prompts_and_recorded_answers(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "run", rows=(*INTENTS, HARD))
    write_as("promptfoo", evidence, tmp_path / "out", Options())
    prompt = _node(tmp_path / "out", "print(require('./prompts.cjs').tuned({vars: {id: 'row2'}}))")
    assert prompt == f"{{% raw %}}{prompt_of('Raise my limit {{ now }}')}{{% endraw %}}"
    prompts = [
        _node(tmp_path / "out", f"print(require('./prompts.cjs').tuned({{vars: {{id: 'row{i}'}}}}))") for i in (4, 5)
    ]
    # promptfoo's own language reads like Jinja here: what it makes of a prompt is the prompt.
    rows = [prompt_of(question) for question, _ in (*INTENTS, HARD)][4:]
    assert [Template(text).render() for text in prompts] == rows
    answer = _node(
        tmp_path / "out",
        "const P = require('./recorded.cjs'); "
        "new P({config: {candidate: 'few_shot'}}).callApi('x', {vars: {id: 'row1'}}).then(print)",
    )
    assert answer == {"output": "lost card", "tokenUsage": {"total": 10, "prompt": 7, "completion": 3}}


def _node(folder: Path, code: str) -> Any:
    script = f"const print = (value) => console.log(JSON.stringify(value)); {code}"
    done = subprocess.run(
        [str(NODE), "-e", script], cwd=folder, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
