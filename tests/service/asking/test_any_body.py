"""Whatever stands in a field, the answer is one of the service: 200, or a refusal that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.service.apps import client_of, make_service
from tests.service.scripted import ScriptedEngine
from tunesmith.inference.serving.types import Ask
from tunesmith.service.asking.chat_request import ChatRequest
from tunesmith.service.asking.completion_request import CompletionRequest
from tunesmith.service.asking.response_request import ResponseRequest

RIGHT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "gpt-4o", "messages": [{"role": "user", "content": "q"}]},
    "/v1/completions": {"model": "gpt-4o", "prompt": "q"},
    "/v1/responses": {"model": "gpt-4o", "input": "q"},
}
FIELDS = {
    "/v1/chat/completions": sorted(ChatRequest.model_fields),
    "/v1/completions": sorted(CompletionRequest.model_fields),
    "/v1/responses": sorted(ResponseRequest.model_fields),
}
WORDS = st.sampled_from(["", "user", "text", "auto", "required", "function", "json_schema", "f", "{}"])
KEYS = st.sampled_from(["role", "content", "type", "text", "function", "name", "parameters", "id", "65", "schema"])
SIMPLE = st.none() | st.booleans() | st.integers(-3, 300) | st.sampled_from([0.5, -1.5, 1e9]) | WORDS
VALUES = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)


def either(*likely: Any) -> Any:
    """One of some values that have a meaning, or anything."""
    return st.sampled_from(likely) | st.sampled_from(likely) | VALUES


def some(**fields: Any) -> Any:
    """An object with some of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


PARTS = st.lists(
    some(type=either("text", "input_text", "image_url", "refusal"), text=either("a"), refusal=WORDS), max_size=2
)
INNER = some(name=either("f", "no blanks"), arguments=either("{}", "["))
SCHEMAS = st.sampled_from(
    [{}, {"type": "object"}, {"type": "strin"}, {"$ref": "#"}, {"enum": []}, {"type": ["string", "null"]},
     {"type": "object", "properties": {"a": {"type": "array", "items": {}}}, "required": ["a", "b"]}]
) | VALUES  # fmt: skip
FUNCTION = some(name=either("f", "g"), parameters=SCHEMAS, strict=either(True, None), description=either("does"))
CALLS = st.lists(some(id=either("c", "d"), type=either("function"), function=INNER), max_size=2)
MESSAGES = st.lists(
    some(
        role=either("user", "assistant", "tool", "function", "developer"), content=either("q") | PARTS, name=WORDS,
        tool_calls=CALLS, tool_call_id=either("c", "d"), function_call=INNER, refusal=WORDS,
    ),
    max_size=4,
)  # fmt: skip
ITEMS = st.lists(
    some(
        type=either("message", "function_call", "function_call_output", "reasoning"), role=either("user", "assistant"),
        content=either("q") | PARTS, call_id=either("c"), name=either("f"), arguments=either("{}"), output=either("r"),
    ),
    max_size=4,
)  # fmt: skip
FORMAT = {"type": either("json_object", "json_schema"), "name": either("x"), "schema": SCHEMAS, "strict": SIMPLE}
LIKELY: dict[str, Any] = {
    "messages": MESSAGES,
    "input": ITEMS,
    "tools": st.lists(
        some(type=either("function"), function=FUNCTION, name=either("f"), parameters=SCHEMAS), max_size=2
    ),
    "functions": st.lists(FUNCTION, max_size=2),
    "tool_choice": either("auto", "none", "required", {"type": "function", "name": "f", "function": {"name": "f"}}),
    "function_call": either("auto", {"name": "f"}),
    "response_format": some(type=FORMAT["type"], json_schema=some(name=either("x"), schema=SCHEMAS)),
    "text": some(format=some(**FORMAT)),
    "stop": either("a", ["a", "b"]),
    "prompt": either("q", [65, 66], ["a", "b"], [[65], [66]]),
    "logprobs": either(True, 2),
    "stream": either(True),
    "metadata": either({"a": "b"}),
    "previous_response_id": WORDS,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    class Loose(ScriptedEngine):
        """Says the same whatever it is held to: only what becomes of the request is looked at."""

        async def submit(self, ask: Ask) -> Any:
            free = replace(ask, decoding=replace(ask.decoding, grammar=None, form=None))
            async for piece in super().submit(free):
                yield piece

    home: Path = tmp_path_factory.mktemp("home")
    with client_of(make_service(home, Loose("fine"))) as made:
        yield made


@pytest.mark.parametrize("path", sorted(RIGHT))
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_value_in_any_field(client: TestClient, path: str, data: st.DataObject) -> None:
    fields = data.draw(st.lists(st.sampled_from(FIELDS[path]), min_size=1, max_size=3, unique=True))
    body = {**RIGHT[path], **{field: data.draw(LIKELY.get(field, VALUES), label=field) for field in fields}}
    reply = client.post(path, json=body)
    assert reply.status_code in (200, 400, 404), (body, reply.text)
    event(f"{reply.status_code}")
    if reply.status_code == 200:
        return
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    if error["param"] is not None:
        assert error["param"].split(".")[0].split("[")[0] in {*body, "messages", "tools", "response_format"}, error
