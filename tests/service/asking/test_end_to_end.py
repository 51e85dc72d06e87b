"""The embedded base answers through the whole house: real client, server, renderer, grammar, torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.service.apps import make_service
from tests.service.azure.serving import served

ASKED: list[Any] = [{"role": "user", "content": "Answer with one word: what colour is the sky?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switch a light",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string", "enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
            "required": ["room", "on"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    from tunesmith.inference.serving.engines import serving_engines

    home: Path = tmp_path_factory.mktemp("home")
    with ExitStack() as stack:
        url = stack.enter_context(served(make_service(home, serving_engines())))
        yield stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))


def test_chat_whole_and_streamed_say_the_same(client: openai.OpenAI) -> None:
    asked: Any = {"model": "gpt-4o-mini", "messages": ASKED, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = whole.choices[0].message.content
    assert text and "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert whole.usage and chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 12
    again = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    assert again.choices[0].message.content == text and again.choices[0].logprobs
    tokens = again.choices[0].logprobs.content
    assert tokens and b"".join(bytes(t.bytes or []) for t in tokens).decode() == text
    assert all(t.top_logprobs[0].logprob == pytest.approx(t.logprob, abs=1e-4) for t in tokens), "greedy"


def test_seeds_decide_what_is_drawn(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="gpt-4o", messages=ASKED, temperature=1.5, max_tokens=12, seed=seed, n=3
        )
        return [choice.message.content for choice in answer.choices]

    assert drawn(3) == drawn(3) != drawn(4)
    assert len(set(drawn(3))) > 1


class Light(BaseModel):
    room: Literal["kitchen", "hall"]
    on: bool


@pytest.mark.parametrize("stream", [False, True])
def test_required_tools_keep_their_schema(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {
        "model": "gpt-4o", "messages": [{"role": "user", "content": "Light in the hall, please."}], "tools": [TOOL],
        "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0, "max_tokens": 60,
    }  # fmt: skip
    if stream:
        parts = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True)]
        arguments = "".join(d.function.arguments or "" for p in parts for d in p.delta.tool_calls or [] if d.function)
        assert parts[-1].finish_reason == "tool_calls"
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
        assert choice.message.tool_calls[0].function.name == "set_light"
        arguments = choice.message.tool_calls[0].function.arguments
    assert Light.model_validate_json(arguments)


def test_answers_keep_a_schema(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="gpt-4o", messages=ASKED, response_format=Light, temperature=0, max_tokens=60
    )
    assert isinstance(parsed.choices[0].message.parsed, Light)
    made = client.responses.parse(model="gpt-4o", input="Light?", text_format=Light, max_output_tokens=60)
    assert isinstance(made.output_parsed, Light)


def test_completions_with_scores(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="babbage-002", prompt="The sky is", max_tokens=1, temperature=0, logprobs=2, echo=True
    )
    found = answer.choices[0].logprobs
    assert found and found.tokens and found.token_logprobs and found.text_offset and found.top_logprobs
    assert answer.choices[0].text.startswith("The sky is")
    known = [value for value in found.token_logprobs if value is not None]
    assert len(known) == len(found.tokens) - 1 and all(value <= 0 for value in known)
    assert len(found.top_logprobs[-1]) == 2
    nothing = client.completions.create(model="babbage-002", prompt="", max_tokens=3)
    assert nothing.usage and nothing.usage.prompt_tokens == 1
    only = client.completions.create(model="babbage-002", prompt="The sky", max_tokens=0, echo=True, logprobs=0)
    assert only.choices[0].text == "The sky" and only.usage and only.usage.completion_tokens == 0


def test_context_is_told_in_tokens(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "word " * 5000}])
    assert long.value.code == "context_length_exceeded"


def test_calls_come_back_as_json(client: openai.OpenAI) -> None:
    """What the model says freely is content or calls; either way the answer is whole."""
    answer = client.chat.completions.create(
        model="gpt-4o", messages=ASKED, tools=[{**TOOL, "function": {**TOOL["function"], "strict": False}}],
        temperature=0, max_tokens=30,
    )  # fmt: skip
    message = answer.choices[0].message
    assert message.content is not None or message.tool_calls
    for call in message.tool_calls or []:
        assert isinstance(json.loads(call.function.arguments), dict)  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_no_answer_can_keep_is_the_askers_mistake(client: openai.OpenAI, stream: bool) -> None:
    """It compiles; that nothing can stand for `a` is seen when it is written."""
    schema = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "loop", "schema": schema}}
    with pytest.raises(openai.APIError, match="no token") as refused:
        answer: Any = client.chat.completions.create(
            model="gpt-4o", messages=ASKED, response_format=form, temperature=0, max_tokens=40, stream=stream
        )
        list(answer)
    assert refused.value.code == "invalid_value" and refused.value.type == "invalid_request_error"
    assert stream or isinstance(refused.value, openai.BadRequestError)
