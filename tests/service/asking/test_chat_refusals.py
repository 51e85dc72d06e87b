"""What is wrong with a chat request is told as OpenAI tells it, all of it at once, and never as 422 or 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.service.apps import client_of, make_service
from tests.service.scripted import ScriptedEngine

USER: dict[str, Any] = {"role": "user", "content": "q"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
BAD: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "strin"}}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    home: Path = tmp_path_factory.mktemp("home")
    with client_of(make_service(home, ScriptedEngine("fine"))) as made:
        yield made


def refused(client: TestClient, **more: Any) -> dict[str, Any]:
    """The error of a request that is right but for `more`."""
    answer = client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": [USER], **more})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert (error["type"] == "invalid_request_error" and error["message"][-1] in ".}'\"") or error["message"]
    return error


def called(arguments: str) -> list[Any]:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    return [USER, {**CALLING, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "r"}]


@pytest.mark.parametrize(
    ("more", "param", "code", "words"),
    [
        ({"temperature": 3}, "temperature", "invalid_value", "<= 2"),
        ({"temperature": -0.1}, "temperature", "invalid_value", ">= 0"),
        ({"temperature": "1"}, "temperature", "invalid_type", "a string"),
        ({"n": 0}, "n", "invalid_value", ">= 1"),
        ({"n": 100_000}, "n", "invalid_value", "<= 128"),
        ({"n": True}, "n", "invalid_type", "a boolean"),
        ({"top_p": 1.5}, "top_p", "invalid_value", "<= 1"),
        ({"presence_penalty": -3}, "presence_penalty", "invalid_value", ">= -2"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", ">= 1"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "invalid_parameter_combination", "same time"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value", "<= 20"),
        ({"top_logprobs": 1}, "top_logprobs", None, "'logprobs' is enabled"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value", "at most 4"),
        ({"stop": [""]}, "stop", "invalid_value", "empty"),
        ({"stop": 3}, "stop", "invalid_value", "string"),
        ({"seed": 2**64}, "seed", "invalid_value", "<="),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value", "no token id"),
        ({"logit_bias": {"3": 101}}, "logit_bias", "invalid_value", "-100 to 100"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value", "Maximum value"),
        ({"colour": 1}, "colour", "unknown_parameter", "Unknown parameter"),
        ({"messages": []}, "messages", "invalid_value", "at least 1"),
        ({"messages": "hi"}, "messages", "invalid_type", "an array"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "invalid_value", "expected"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value", "got null"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value", "empty array"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
         "messages[0].content[0].type", "invalid_value", "Invalid content type. image_url is only supported"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text",
         "invalid_type", "a string"),
        ({"messages": [{"role": "user", "content": [{"type": "poem"}]}]}, "messages[0].content[0].type",
         "invalid_value", '"poem"'),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "c", "content": ""}]}, "messages[1].role",
         "invalid_value", "must be a response to a preceeding message with 'tool_calls'"),
        ({"messages": [USER, CALLING]}, "messages[1].tool_calls", "invalid_value", "response messages: c1"),
        ({"messages": [USER, CALLING, USER]}, "messages[1].tool_calls", "invalid_value", "c1"),
        ({"messages": called("nothing")}, "messages[1].tool_calls[0].function.arguments", "invalid_value", "JSON text"),
        ({"messages": called("[1]")}, "messages[1].tool_calls[0].function.arguments", "invalid_value", "an object"),
        ({"messages": [{**CALLING, "role": "user"}]}, "messages[0].tool_calls", "invalid_value", "only the assistant"),
        ({"messages": [USER, {"role": "function", "name": "f", "content": "r"}]}, "messages[1].role", "invalid_value",
         "'function_call'"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "invalid_value", "'function'"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "invalid_value", "twice"),
        ({"tools": [{"type": "function", "function": {"name": "no blanks"}}]}, "tools[0].function.name",
         "invalid_value", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": BAD}}]},
         "tools[0].function.parameters", "invalid_function_parameters", "Invalid type: strin"),
        ({"tool_choice": "required"}, "tool_choice", None, "only allowed when 'tools'"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice", "invalid_value", "'required'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice",
         "invalid_value", "'g' not found in 'tools'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", "invalid_value", "name is missing"),
        ({"tools": [TOOL], "functions": [TOOL["function"]]}, "functions", "invalid_parameter_combination", "older"),
        ({"functions": [TOOL["function"]], "function_call": {"name": "g"}}, "function_call", "invalid_value", "'g'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter", ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": BAD}}}, "response_format",
         None, "Invalid schema for response_format 'x'"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "json_object"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None, "'stream' is enabled"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter", "text"),
        ({"audio": {"voice": "a", "format": "mp3"}}, "audio", "unsupported_parameter", "text"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter", "network"),
        ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter", "moderation"),
        ({"metadata": {str(i): "x" for i in range(17)}, "store": True}, "metadata", "invalid_value", "16"),
    ],
)  # fmt: skip
def test_refuses(client: TestClient, more: dict[str, Any], param: str, code: str | None, words: str) -> None:
    error = refused(client, **more)
    assert (error["param"], error["code"]) == (param, code), error["message"]
    assert words in error["message"]


def test_tells_all_that_is_wrong(client: TestClient) -> None:
    both = refused(client, n=0, temperature=9, extra=1)
    assert {one["param"] for one in both["details"]} == {"n", "temperature", "extra"}
    said = [{"role": "user"}, {"role": "tool", "content": "x"}, CALLING]
    assert [one["param"] for one in refused(client, messages=said)["details"]] == [
        "messages[0].content", "messages[1].tool_call_id", "messages[2].tool_calls"
    ]  # fmt: skip


def test_refuses_missing_and_unknown_models(client: TestClient) -> None:
    missing = client.post("/v1/chat/completions", json={"messages": [USER]})
    assert missing.status_code == 400 and missing.json()["error"]["message"] == "Missing required parameter: 'model'."
    unknown = client.post("/v1/chat/completions", json={"model": "gpt-9", "messages": [USER]})
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    assert "gpt-4o" in unknown.json()["error"]["message"]


@pytest.mark.parametrize(
    "more",
    [
        {"user": "me", "safety_identifier": "x", "service_tier": "flex", "reasoning_effort": "low", "verbosity": "low"},
        {"prediction": {"type": "content", "content": "fine"}, "prompt_cache_key": "k", "modalities": ["text"]},
        {"prompt_cache_options": {"mode": "implicit"}, "prompt_cache_retention": "24h", "store": None},
        {"temperature": None, "n": None, "stop": None, "tools": None, "response_format": None, "stream": None},
        {"stop": [], "logit_bias": {}, "metadata": {}, "tools": [], "parallel_tool_calls": True, "tool_choice": "auto"},
        {"messages": [{**USER, "name": "me"}, {"role": "assistant", "content": "a", "refusal": None, "audio": None}]},
        {"messages": [{"role": "developer", "content": "be"}, {**USER, "weight": 1}]},
        {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER]},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": BAD}}]},
    ],
)
def test_takes_what_has_no_meaning_here(client: TestClient, more: dict[str, Any]) -> None:
    answer = client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": [USER], **more})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "fine"


def test_none_tells_the_model_of_no_tools(tmp_path: Path) -> None:
    engine = ScriptedEngine('call f {"a": 1}')
    with client_of(make_service(tmp_path, engine)) as client:
        body = {"model": "gpt-4o", "messages": [USER], "tools": [TOOL], "tool_choice": "none"}
        answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == 'call f {"a": 1}'
    assert engine.asks[0].prompt[0].tools is None  # type: ignore[union-attr]


def test_definitions_reach_the_model_as_they_were_written(tmp_path: Path) -> None:
    engine = ScriptedEngine("fine")
    inner = {"parameters": {"type": "object", "properties": {}}, "description": "does", "name": "f"}
    with client_of(make_service(tmp_path, engine)) as client:
        for field, given in (("tools", [{"type": "function", "function": inner}]), ("functions", [inner])):
            client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": [USER], field: given})
    offered = [ask.prompt[0].tools for ask in engine.asks]  # type: ignore[union-attr]
    assert [one.definitions for one in offered if one] == [(json.dumps({"type": "function", "function": inner}),)] * 2


def test_a_model_that_cannot_be_loaded_says_nothing_of_paths(tmp_path: Path) -> None:
    service = make_service(tmp_path, ScriptedEngine("fine"), aliases={"gpt-4o": "/missing/base"})
    with client_of(service) as client:
        answer = client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": [USER]})
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "model_not_loaded"
    assert "/missing" not in answer.text


def test_templates_that_refuse_turns_are_the_users_mistake(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    said = [USER, {"role": "assistant", "content": "a"}, {"role": "system", "content": "b"}]
    with client_of(make_service(tmp_path, ScriptedEngine("fine", chat_template=template))) as client:
        answer = client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": said})
    assert answer.status_code == 400 and "no system turns" in answer.json()["error"]["message"]
