"""Chat completions through the real client."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.service.asking.conftest import House
from tests.service.scripted import ScriptedEngine

ASKED: list[Any] = [{"role": "user", "content": "Where is the lamp?"}]
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
LIGHT: dict[str, Any] = {
    "name": "set_light",
    "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}},
}
TOOLS: list[Any] = [{"type": "function", "function": one} for one in (WEATHER, LIGHT)]


def test_answers_with_everything_the_notebook_reads(house: House) -> None:
    engine = house.says("on the desk")
    answer = house.client.chat.completions.create(
        model="gpt-4o-mini", messages=ASKED, temperature=0, max_tokens=500, user="me", service_tier="auto"
    )
    assert answer.choices[0].message.content == "on the desk"
    assert (answer.choices[0].finish_reason, answer.choices[0].logprobs) == ("stop", None)
    assert answer.model == "gpt-4o-mini-2024-07-18" and answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-") and answer.service_tier == "default"
    assert answer.system_fingerprint is not None and answer.system_fingerprint.startswith("fp_")
    assert answer.usage is not None and answer.usage.completion_tokens == len("on the desk")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = house.client.chat.completions.create(model="gpt-4o-mini", messages=ASKED)
    assert again.usage is not None and again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    asked = engine.asks[0]
    assert (asked.max_new_tokens, asked.decoding.temperature, asked.decoding.top) == (500, 0.0, None)
    assert engine.asks[1].max_new_tokens is None and engine.asks[1].decoding.temperature == 1.0


def test_passes_on_how_to_draw(house: House) -> None:
    engine = house.says(["a", "b", "c"])
    answer = house.client.chat.completions.create(
        model="gpt-4o", messages=ASKED, n=3, stop=["x", "y"], seed=-7, temperature=0.5, top_p=0.9,
        presence_penalty=1, frequency_penalty=-1, logit_bias={"65": -100}, max_completion_tokens=9,
    )  # fmt: skip
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "a"), (1, "b"), (2, "c")]
    asked, drawn = engine.asks[0], engine.asks[0].decoding
    assert (asked.count, asked.max_new_tokens) == (3, 9)
    assert (drawn.stop, drawn.seed, drawn.temperature, drawn.top_p) == (("x", "y"), -7, 0.5, 0.9)
    assert (drawn.presence_penalty, drawn.frequency_penalty, drawn.logit_bias) == (1, -1, {65: -100})


def test_streams_role_text_end_and_usage(house: House) -> None:
    house.says("grüße 🙂 an alle")
    options: Any = {"include_usage": True}
    stream = house.client.chat.completions.create(model="gpt-4o", messages=ASKED, stream=True, stream_options=options)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "grüße 🙂 an alle"
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-2].choices[0].delta.content is None
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1 and len({c.system_fingerprint for c in chunks}) == 1
    assert len(chunks) > 6
    without = list(house.client.chat.completions.create(model="gpt-4o", messages=ASKED, stream=True))
    assert without[-1].choices[0].finish_reason == "stop" and all(chunk.usage is None for chunk in without)


def test_streams_several_answers_side_by_side(house: House) -> None:
    house.says(["first answer", "second"])
    texts = {0: "", 1: ""}
    ends: list[int] = []
    for chunk in house.client.chat.completions.create(model="gpt-4o", messages=ASKED, stream=True, n=2):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert texts == {0: "first answer", 1: "second"} and ends == [1, 0]


def test_stream_ends_as_the_client_expects(house: House) -> None:
    house.says("ok")
    with house.client.chat.completions.with_streaming_response.create(
        model="gpt-4o", messages=ASKED, stream=True
    ) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        lines = list(raw.iter_lines())
    assert lines[-2:] == ["data: [DONE]", ""] and all(not line or line.startswith("data: ") for line in lines)


def test_tells_log_probabilities_with_bytes(house: House) -> None:
    house.says("né")
    answer = house.client.chat.completions.create(model="gpt-4o", messages=ASKED, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens is not None and [t.token for t in tokens] == ["n", "\\xc3", "\\xa9"]
    assert [t.bytes for t in tokens] == [[110], [0xC3], [0xA9]]
    assert tokens[0].logprob == pytest.approx(math.log(0.5)) and [t.token for t in tokens[0].top_logprobs] == ["n", "o"]
    streamed = house.client.chat.completions.create(model="gpt-4o", messages=ASKED, logprobs=True, stream=True)
    told = [c.choices[0].logprobs.content or [] for c in streamed if c.choices[0].logprobs]
    assert [t.token for part in told for t in part] == ["n", "\\xc3", "\\xa9"]
    assert all(t.top_logprobs == [] for part in told for t in part)


def test_ends_at_length_and_before_stop_texts(house: House) -> None:
    house.says("one two three")
    cut = house.client.chat.completions.create(model="gpt-4o", messages=ASKED, max_tokens=5)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("one t", "length")
    stopped = house.client.chat.completions.create(model="gpt-4o", messages=ASKED, stop="two")
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("one ", "stop")


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
def test_calls_tools_whole_and_streamed(house: House, choice: Any) -> None:
    engine = house.says('call get_weather {"city": "Oslo", "days": 2}')
    answer = house.client.chat.completions.create(model="gpt-4o", messages=ASKED, tools=TOOLS, tool_choice=choice)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content is None and message.tool_calls
    (call,) = message.tool_calls
    assert call.type == "function" and call.id.startswith("call_")
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo", "days": 2})
    offered = engine.asks[0].prompt[0].tools  # type: ignore[union-attr]
    assert offered is not None and len(offered.definitions) == 2, "the model sees every tool, as it was trained"
    assert (engine.asks[0].decoding.grammar is None) == (choice == "auto")
    chunks = list(
        house.client.chat.completions.create(
            model="gpt-4o", messages=ASKED, tools=TOOLS, tool_choice=choice, stream=True
        )
    )
    deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or []]
    assert (deltas[0].index, deltas[0].type, deltas[0].function and deltas[0].function.name) == (
        0,
        "function",
        "get_weather",
    )
    assert deltas[0].id and all(d.id is None for d in deltas[1:])
    assert json.loads("".join(d.function.arguments or "" for d in deltas if d.function)) == {"city": "Oslo", "days": 2}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert (len(deltas) > 3) == (choice != "auto"), "arguments that are held to a form come as they are written"


def test_several_answers_each_with_its_calls(house: House) -> None:
    house.says(['call get_weather {"city": "Oslo"}', 'call set_light {"on": false}\ncall set_light {"on": true}'])
    asked: Any = {"model": "gpt-4o", "messages": ASKED, "tools": TOOLS, "tool_choice": "required", "n": 2}
    whole = house.client.chat.completions.create(**asked)
    names = [[call.function.name for call in c.message.tool_calls or []] for c in whole.choices]  # type: ignore[union-attr]
    assert names == [["get_weather"], ["set_light", "set_light"]]
    with house.client.chat.completions.stream(**asked) as stream:
        final = stream.until_done().get_final_completion()
    streamed = [
        [(c.function.name, c.function.arguments) for c in one.message.tool_calls or []] for one in final.choices
    ]
    assert streamed == [
        [("get_weather", '{"city": "Oslo"}')], [("set_light", '{"on": false}'), ("set_light", '{"on": true}')]
    ]  # fmt: skip


def test_stream_helper_accumulates_parallel_calls(house: House) -> None:
    house.says('Both then.\ncall get_weather {"city": "Oslo"}\ncall set_light {"on": true}')
    with house.client.chat.completions.stream(model="gpt-4o", messages=ASKED, tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "Both then." and message.tool_calls
    assert [c.function.name for c in message.tool_calls] == ["get_weather", "set_light"]
    assert [json.loads(c.function.arguments) for c in message.tool_calls] == [{"city": "Oslo"}, {"on": True}]
    assert kinds.count("tool_calls.function.arguments.done") == 2
    house.says('call get_weather {"city": "Oslo"}\ncall set_light {"on": true}')
    one = house.client.chat.completions.create(model="gpt-4o", messages=ASKED, tools=TOOLS, parallel_tool_calls=False)
    assert one.choices[0].message.tool_calls and len(one.choices[0].message.tool_calls) == 1


def test_calls_and_results_go_back_and_forth(house: House) -> None:
    house.says('call get_weather {"city": "Oslo"}')
    first = house.client.chat.completions.create(model="gpt-4o", messages=ASKED, tools=TOOLS).choices[0].message
    assert first.tool_calls
    engine = house.says("It rains.")
    said = [*ASKED, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "rain"}]
    answer = house.client.chat.completions.create(model="gpt-4o", messages=said, tools=TOOLS)
    assert answer.choices[0].message.content == "It rains."
    turns = engine.asks[0].prompt
    assert [turn.role for turn in turns] == ["user", "assistant", "tool"]  # type: ignore[union-attr]
    rendered = engine.renderer.prompt_text(turns)  # type: ignore[arg-type]
    assert 'call get_weather {"city": "Oslo"}' in rendered and "result of get_weather:\nrain" in rendered


def test_old_functions_are_answered_in_the_old_way(house: House) -> None:
    engine = house.says('call get_weather {"city": "Oslo"}')
    call: Any = {"name": "get_weather"}
    answer = house.client.chat.completions.create(
        model="gpt-3.5-turbo", messages=ASKED, functions=[WEATHER, LIGHT], function_call=call  # type: ignore[list-item]
    )  # fmt: skip
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "function_call" and message.tool_calls is None
    assert message.function_call and json.loads(message.function_call.arguments) == {"city": "Oslo"}
    assert engine.asks[0].decoding.grammar is not None
    back = [*ASKED, message, {"role": "function", "name": "get_weather", "content": "rain"}]
    house.says("It rains.")
    after = house.client.chat.completions.create(model="gpt-3.5-turbo", messages=back, functions=[WEATHER])  # type: ignore[list-item]
    assert after.choices[0].message.content == "It rains."


class Lamp(BaseModel):
    place: Literal["desk", "floor"]
    count: int


def test_parses_into_a_model_of_the_user(house: House) -> None:
    engine = house.says('{"place": "desk", "count": 2}')
    answer = house.client.chat.completions.parse(model="gpt-4o", messages=ASKED, response_format=Lamp)
    assert answer.choices[0].message.parsed == Lamp(place="desk", count=2)
    grammar = engine.asks[0].decoding.grammar
    assert grammar is not None and '"required": ["place", "count"]' in grammar
    house.says('{"any": []}')
    loose: Any = {"type": "json_object"}
    assert house.client.chat.completions.create(model="gpt-4o", messages=ASKED, response_format=loose)


class GetWeather(BaseModel):
    city: str


def test_parses_strict_tools(house: House) -> None:
    engine = house.says('Let me look.\ncall GetWeather {"city": "Oslo"}')
    answer = house.client.chat.completions.parse(
        model="gpt-4o", messages=ASKED, tools=[openai.pydantic_function_tool(GetWeather)]
    )
    calls = answer.choices[0].message.tool_calls
    assert calls and calls[0].function.parsed_arguments == GetWeather(city="Oslo")
    assert answer.choices[0].message.content == "Let me look."
    assert engine.asks[0].decoding.grammar is not None, "a strict function's arguments keep its schema"


def test_async_client(house: House) -> None:
    house.says("fine")

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=house.url, api_key="none") as client:
            asked = (client.chat.completions.create(model="gpt-4o", messages=ASKED) for _ in range(8))
            answers = await asyncio.gather(*asked)
            stream = await client.chat.completions.create(model="gpt-4o", messages=ASKED, stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return [*(answer.choices[0].message.content for answer in answers), streamed]

    assert asyncio.run(ask()) == ["fine"] * 9


def test_leaving_ends_the_work(open_house: Any) -> None:
    house: House = open_house(ScriptedEngine("x" * 400, per_piece=1, delay=0.02))
    stream = house.client.chat.completions.create(model="gpt-4o", messages=ASKED, stream=True)
    for _, _ in zip(range(3), stream, strict=False):
        pass
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        house.client.with_options(timeout=0.2).chat.completions.create(model="gpt-4o", messages=ASKED)
    for _ in range(100):
        if house.engine.closed == 2 and house.engine.running == 0:
            break
        asyncio.run(asyncio.sleep(0.02))
    assert (house.engine.closed, house.engine.running) == (2, 0)


def test_failing_in_the_middle_is_an_event(open_house: Any) -> None:
    house: House = open_house(ScriptedEngine("some text", fail_after=1))
    got = []
    with pytest.raises(openai.APIError, match="engine failed") as told:
        for chunk in house.client.chat.completions.create(model="gpt-4o", messages=ASKED, stream=True):
            got.append(chunk)
    assert len(got) == 2 and "secret" not in str(told.value)
    with pytest.raises(openai.InternalServerError, match="engine failed"):
        house.client.chat.completions.create(model="gpt-4o", messages=ASKED)


def test_conversations_of_many_turns_are_refused_at_once(open_house: Any) -> None:
    """Counting them exactly takes time that grows with the square of their turns."""
    house: House = open_house(ScriptedEngine("fine", context=2000))

    def say(turns: int) -> Any:
        said: Any = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(turns)]
        return house.client.chat.completions.create(model="gpt-4o", messages=said, max_tokens=5)

    def counting(turns: Any) -> Any:
        raise AssertionError("counted exactly")

    assert say(101).choices[0].message.content == "fine"
    exact = house.engine.renderer.prompt_ids
    house.engine.renderer.prompt_ids = counting  # type: ignore[method-assign]
    try:
        with pytest.raises(openai.BadRequestError, match="maximum context length is 2000 tokens") as long:
            say(2047)
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="at most 2048 turns, but got 2049") as many:
            say(2049)
        assert many.value.param == "messages"
    finally:
        house.engine.renderer.prompt_ids = exact  # type: ignore[method-assign]


def test_too_much_and_too_long(open_house: Any) -> None:
    house: House = open_house(ScriptedEngine("fine", context=100))
    with pytest.raises(openai.BadRequestError) as long:
        house.client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "a" * 200}])
    assert long.value.code == "context_length_exceeded" and long.value.param == "messages"
    assert "maximum context length is 100 tokens. However, your messages resulted in" in long.value.message
    with pytest.raises(
        openai.BadRequestError, match=r"you requested 12\d tokens \(2\d in the messages, 100 in the comp"
    ):
        house.client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "a"}], max_tokens=100, stream=True
        )
    house.engine.capacity = 0
    with pytest.raises(openai.RateLimitError) as much:
        house.client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "a"}], stream=True)
    assert much.value.code == "rate_limit_exceeded" and much.value.response.headers["retry-after"] == "2"
