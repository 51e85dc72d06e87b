"""A teacher and rows with tools: asked in plain words, and what it calls becomes calls of the row."""

from __future__ import annotations

import json

from tunesmith.data.formats import Writer, format_named
from tunesmith.data.types import Example, Message, ToolCall
from tunesmith.pipeline.synthetic import teacher_requests
from tunesmith.pipeline.synthetic_rows import WrittenForm
from tunesmith.tasks.generation import Generation

TOOL = json.dumps({"type": "function", "function": {"name": "look"}})
CALL = Message("assistant", "", tool_calls=(ToolCall("1", "look", "{}"),))
ROW = Example(
    "1", (Message("user", "Where?"), CALL, Message("tool", "here", tool_call_id="1"), CALL), "x", 1, "f", tools=(TOOL,)
)


def test_every_turn_that_is_sent_is_a_text_of_a_role_that_all_endpoints_take() -> None:
    (request,) = teacher_requests([ROW], Generation(), "m", max_tokens=9, options={})
    assert [turn["role"] for turn in request.turns] == ["system", "user", "assistant", "user"]
    assert '{"name": "look"}' in request.turns[0]["content"] and request.turns[2]["content"] == "call look {}"
    assert request.turns[3]["content"] == "result of look:\nhere"


def test_a_teachers_call_becomes_a_call_and_its_text_a_text() -> None:
    writer = format_named("chat")
    assert isinstance(writer, Writer)
    form = WrittenForm(writer)
    called = form.answered(ROW, 'call look {"at": 1}')["messages"][-1]
    assert called["content"] is None and called["tool_calls"][0]["function"] == {
        "name": "look",
        "arguments": '{"at": 1}',
    }
    said = form.answered(ROW, "It is here.")["messages"][-1]
    assert said == {"role": "assistant", "content": "It is here."}
    assert form.reworded(ROW, "Where is it?")["messages"][0]["content"] == "Where is it?"
