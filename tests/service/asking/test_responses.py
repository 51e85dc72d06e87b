"""Responses through the real client: text, tools, schemas, continuing, typed events, what is kept."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.service.asking.conftest import House
from tests.service.scripted import ScriptedEngine
from tunesmith.data.types import Message

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def test_answers_a_text(house: House) -> None:
    engine = house.says("on the desk")
    made = house.client.responses.create(
        model="gpt-4o-mini", input="Where is the lamp?", instructions="Be brief.", temperature=0, max_output_tokens=50,
        metadata={"a": "b"}, user="me", reasoning={"effort": "low"},
    )  # fmt: skip
    assert made.output_text == "on the desk" and made.status == "completed" and made.error is None
    assert made.id.startswith("resp_") and made.model == "gpt-4o-mini-2024-07-18" and made.metadata == {"a": "b"}
    assert made.usage and made.usage.output_tokens == len("on the desk")
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert engine.asks[0].prompt == (Message("system", "Be brief."), Message("user", "Where is the lamp?"))
    assert engine.asks[0].max_new_tokens == 50 and engine.asks[0].decoding.temperature == 0


def test_cut_answers_are_incomplete(house: House) -> None:
    house.says("on the desk")
    made = house.client.responses.create(model="gpt-4o", input="q", max_output_tokens=4)
    assert (made.status, made.output_text) == ("incomplete", "on t") and made.incomplete_details
    assert made.incomplete_details.reason == "max_output_tokens"


def test_continues_what_came_before(house: House) -> None:
    house.says("blue")
    first = house.client.responses.create(model="gpt-4o", input="colour?", instructions="Be brief.")
    house.says("dark")
    second = house.client.responses.create(model="gpt-4o", input="which?", previous_response_id=first.id)
    engine = house.says("yes")
    third = house.client.responses.create(
        model="gpt-4o", input=[{"role": "developer", "content": "Now say yes."}, {"role": "user", "content": "sure?"}],
        previous_response_id=second.id,
    )  # fmt: skip
    said = [(turn.role, turn.content) for turn in engine.asks[0].prompt]  # type: ignore[union-attr]
    assert said == [
        ("user", "colour?"), ("assistant", "blue"), ("user", "which?"), ("assistant", "dark"),
        ("system", "Now say yes."), ("user", "sure?"),
    ]  # fmt: skip
    listed = house.client.responses.input_items.list(third.id, limit=4)
    assert [item.type for item in listed] == ["message"] * 6, "the client follows the pages"
    oldest = house.client.responses.input_items.list(third.id, order="asc").data[0]
    assert oldest.content[0].text == "colour?"  # type: ignore[union-attr]
    assert house.client.responses.retrieve(second.id).output_text == "dark"
    house.client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        house.client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as gone:
        house.client.responses.create(model="gpt-4o", input="q", previous_response_id=second.id)
    assert gone.value.code == "previous_response_not_found"


def test_keeps_nothing_where_asked(house: House) -> None:
    made = house.client.responses.create(model="gpt-4o", input="q", store=False)
    with pytest.raises(openai.NotFoundError):
        house.client.responses.retrieve(made.id)


def test_streams_typed_events(house: House) -> None:
    house.says("grüße 🙂")
    events = list(house.client.responses.create(model="gpt-4o", input="q", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"} and len(kinds) > 9
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "grüße 🙂"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed" and last.response.output_text == "grüße 🙂"
    assert house.client.responses.retrieve(last.response.id) == last.response


def test_calls_tools_and_takes_results(house: House) -> None:
    engine = house.says('A moment.\ncall get_weather {"city": "Oslo"}\ncall get_weather {"city": "Bergen"}')
    made = house.client.responses.create(model="gpt-4o", input="weather?", tools=[WEATHER])
    assert [item.type for item in made.output] == ["message", "function_call", "function_call"]
    calls = [item for item in made.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Oslo", "Bergen"]
    offered = engine.asks[0].prompt[0].tools  # type: ignore[union-attr]
    assert offered and json.loads(offered.definitions[0])["function"]["name"] == "get_weather"
    engine = house.says("Rain in both.")
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls]
    after = house.client.responses.create(model="gpt-4o", input=results, previous_response_id=made.id, tools=[WEATHER])
    assert after.output_text == "Rain in both."
    assert [turn.role for turn in engine.asks[0].prompt] == ["user", "assistant", "tool", "tool"]  # type: ignore[union-attr]
    engine = house.says("Rain.")
    whole: Any = [{"role": "user", "content": "weather?"}, *made.output, *results]
    house.client.responses.create(model="gpt-4o", input=whole, tools=[WEATHER])
    turns: Any = engine.asks[0].prompt
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "tool"]
    assert turns[1].content == "A moment." and len(turns[1].tool_calls) == 2


def test_stream_helper_with_a_held_call(house: House) -> None:
    house.says('call get_weather {"city": "Oslo"}')
    choice: Any = {"type": "function", "name": "get_weather"}
    with house.client.responses.stream(model="gpt-4o", input="q", tools=[WEATHER], tool_choice=choice) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    (call,) = final.output
    assert (call.type == "function_call" and call.parsed_arguments is not None) or call.arguments == '{"city": "Oslo"}'  # type: ignore[union-attr]
    assert kinds.count("response.function_call_arguments.delta") > 2
    assert kinds.count("response.function_call_arguments.done") == 1


def test_truncation_leaves_out_the_oldest_turns(open_house: Any) -> None:
    house: House = open_house(ScriptedEngine("fine", context=200))
    said: Any = [{"role": "developer", "content": "Be brief."}]
    for number in range(8):
        said += [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"answer {number}"},
        ]
    said.append({"role": "user", "content": "last?"})
    with pytest.raises(openai.BadRequestError, match="maximum context length is 200 tokens"):
        house.client.responses.create(model="gpt-4o", input=said, max_output_tokens=20)
    made = house.client.responses.create(model="gpt-4o", input=said, max_output_tokens=20, truncation="auto")
    asked: Any = house.engine.asks[-1].prompt
    assert made.truncation == "auto" and made.output_text == "fine"
    assert (asked[0].role, asked[1].role, asked[-1].content) == ("system", "user", "last?")
    kept = len(asked) // 2 - 1
    assert 0 < kept < 8 and asked[1].content == f"question {8 - kept}"
    tokens = house.engine.renderer.prompt_ids
    assert len(tokens(asked)) + 20 <= 200 < len(tokens([*asked[:3], *asked[1:]])) + 20, "as few as will do"
    with pytest.raises(openai.BadRequestError, match="maximum context"):
        house.client.responses.create(model="gpt-4o", input="x" * 300, truncation="auto")


def test_tokens_are_counted_as_they_are_asked(open_house: Any) -> None:
    house: House = open_house(ScriptedEngine("fine", context=600))
    count = house.client.responses.input_tokens.count
    first = house.client.responses.create(model="gpt-4o", input="weather?", instructions="Be brief.")
    assert first.usage
    counted = count(model="gpt-4o", input="weather?", instructions="Be brief.")
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", first.usage.input_tokens)
    more: Any = {"model": "gpt-4o", "input": [{"role": "developer", "content": "And now?"}], "tools": [WEATHER],
                 "previous_response_id": first.id, "reasoning": {"effort": "low"}}  # fmt: skip
    asked = house.client.responses.create(**more).usage
    assert asked and count(**more, personality="friendly").input_tokens == asked.input_tokens > counted.input_tokens
    assert count(model="gpt-4o", input="x" * 700).input_tokens > 700, "also of what does not fit"
    said: Any = [{"role": "user", "content": "x" * 250}] * 3
    assert count(model="gpt-4o", input=said, truncation="auto").input_tokens < 600
    assert len(house.engine.asks) == 2, "nothing is asked for it"
    refusals: list[tuple[str, dict[str, Any]]] = [
        ("input", {"model": "gpt-4o"}),
        ("model", {"input": "q"}),
        ("conversation", {"model": "gpt-4o", "input": "q", "conversation": "conv_1"}),
        ("tools[0].type", {"model": "gpt-4o", "input": "q", "tools": [{"type": "shell"}]}),
    ]
    for param, wrong in refusals:
        with pytest.raises(openai.BadRequestError) as refused:
            count(**wrong)
        assert refused.value.param == param


def test_fields_of_functions_that_have_no_meaning_here(house: House) -> None:
    house.says("fine")
    tool: Any = {**WEATHER, "allowed_callers": ["direct"], "output_schema": {"type": "object"}, "defer_loading": False}
    made = house.client.responses.create(
        model="gpt-4o", input="q", tools=[tool], include=["reasoning.encrypted_content"]
    )
    assert made.output_text == "fine"


class Lamp(BaseModel):
    place: str
    count: int


def test_parses_into_a_model_of_the_user(house: House) -> None:
    engine = house.says('{"place": "desk", "count": 2}')
    made = house.client.responses.parse(model="gpt-4o", input="q", text_format=Lamp)
    assert made.output_parsed == Lamp(place="desk", count=2)
    assert engine.asks[0].decoding.grammar is not None
    assert made.text and made.text.format and made.text.format.type == "json_schema"


def test_log_probabilities_where_asked(house: House) -> None:
    house.says("ab")
    made: Any = house.client.responses.create(
        model="gpt-4o", input="q", include=["message.output_text.logprobs"], top_logprobs=1
    ).output[0]
    assert [one.token for one in made.content[0].logprobs] == ["a", "b"]
    assert len(made.content[0].logprobs[0].top_logprobs) == 1


def test_failing_in_the_middle_is_an_event(open_house: Any) -> None:
    house: House = open_house(ScriptedEngine("some text", fail_after=1))
    events = list(house.client.responses.create(model="gpt-4o", input="q", stream=True))
    last = events[-1]
    assert last.type == "response.failed" and last.response.error and "engine failed" in last.response.error.message
    assert "secret" not in last.model_dump_json()


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search_preview"}]}, "tools[0].type"),
        ({"tools": [WEATHER, {"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools[1].type"),
        ({"tools": [{**WEATHER, "name": "not a name"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "file_search"}, "tools": [WEATHER]}, "tool_choice"),
        ({"background": True}, "background"),
        ({"include": ["message.output_text.logprob"]}, "include[0]"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": []}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "input[0].tool_calls"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strin"}}}}, "text.format.schema"),
    ],
)
def test_refuses(house: House, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        house.client.responses.create(**{"model": "gpt-4o", "input": "q", **more})
    assert refused.value.param == param, refused.value.message
