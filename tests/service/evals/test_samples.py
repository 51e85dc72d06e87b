"""Answers of either route, stored or sent along, as graders see them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.service.evals.conftest import EXACT
from tunesmith.service.evals.asking import answer, messages_of
from tunesmith.service.evals.rows import Row
from tunesmith.service.evals.shapes import CompletionsData, ItemReference, JsonlData, Template
from tunesmith.service.evals.stored import sample_of_completion, sample_of_response
from tunesmith.service.grading import grade, read_grader
from tunesmith.service.grading.templates import TemplateError
from tunesmith.service.inner import Reply

FIELDS = st.sampled_from(
    [
        "output_text",
        "output_tools",
        "output_json",
        "choices",
        "message",
        "content",
        "text",
        "tools",
        "tool_calls",
        "input",
        "model",
        "role",
        "city",
    ]
)
CALL = {"id": "call_1", "type": "function", "function": {"name": "fly", "arguments": '{"to": "roof"}'}}
COMPLETION: dict[str, Any] = {
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"content": None, "tool_calls": [CALL]}}],
    "usage": {"prompt_tokens": 4, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
}


def test_tool_calls_of_both_routes_are_the_same() -> None:
    response = {
        "model": "m",
        "output": [
            {"type": "reasoning", "summary": []},
            {
                "type": "message",
                "content": [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}],
            },
            {"type": "function_call", "call_id": "call_1", "name": "fly", "arguments": '{"to": "roof"}'},
        ],
    }
    ours, theirs = sample_of_completion(COMPLETION), sample_of_response(response)
    assert ours["output_tools"] == theirs["output_tools"] == [CALL]
    assert (ours["output_text"], theirs["output_text"]) == ("", "ab") and ours["model"] == "m"


def test_graded_by_the_tool_that_was_called() -> None:
    asked: list[Any] = []

    async def post(path: str, body: Any) -> Reply:
        asked.append(body)
        return Reply(200, COMPLETION)

    data = CompletionsData.model_validate(
        {
            "type": "completions",
            "model": "m",
            "source": {"type": "file_content", "content": []},
            "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.q}}"}]},
            "sampling_params": {"tools": [{"type": "function", "function": {"name": "fly"}}]},
        }
    )
    made = asyncio.run(answer(data, Row({"q": "To the roof!"}), post))
    assert asked[0]["tools"][0]["function"]["name"] == "fly" and asked[0]["messages"][0]["content"] == "To the roof!"
    grader: Any = read_grader({**EXACT, "input": "{{sample.output_tools[0].function.name}}", "reference": "fly"})
    assert asyncio.run(grade(grader, made.sample or {}, {}, post)).passed
    assert made.record["output"][0]["tool_calls"] == [CALL] and made.record["finish_reason"] == "tool_calls"
    assert made.record["usage"]["cached_tokens"] == 1


@pytest.mark.parametrize(
    ("sample", "text", "tools"),
    [
        ({"output_text": "a"}, "a", []),
        ({"output_text": "", "output_tools": [CALL]}, "", [CALL]),
        ({"choices": COMPLETION["choices"], "model": "m"}, "", [CALL]),
        ({"choices": [{"message": {"content": "b"}}]}, "b", []),
    ],
)
def test_answers_that_come_with_the_row(sample: Any, text: str, tools: Any) -> None:
    data = JsonlData.model_validate({"type": "jsonl", "source": {"type": "file_content", "content": []}})
    made = asyncio.run(answer(data, Row({"input": [{"role": "user", "content": "hi"}]}, sample), None))  # type: ignore[arg-type]
    assert made.sample is not None and (made.sample["output_text"], made.sample["output_tools"]) == (text, tools)
    assert made.record["input"][0]["content"] == "hi" and made.record["usage"]["invocation_count"] == 0


def test_fields_of_ones_own_stay() -> None:
    data = JsonlData.model_validate({"type": "jsonl", "source": {"type": "file_content", "content": []}})
    made = asyncio.run(answer(data, Row({}, {"output_text": "[1]", "mine": 3}), None))  # type: ignore[arg-type]
    assert made.sample is not None and made.sample["mine"] == 3 and made.sample["output_json"] == [1]


def test_messages_in_parts() -> None:
    given = Template.model_validate(
        {
            "type": "template",
            "template": [
                {"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{item.a}}"}},
                {"role": "user", "content": ["x ", {"type": "input_text", "text": "{{item.a}}"}]},
            ],
        }
    )
    assert [one["content"] for one in messages_of(given, Row({"a": "A"}))] == ["A", "x A"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(FIELDS, anything, max_size=5), st.dictionaries(FIELDS, anything, max_size=5))
@example({"output_text": "a", "text": "b", "tools": 1, "choices": 3}, {})
@example({"choices": [{"message": {"content": [{"text": 3}], "tool_calls": "x"}}]}, {"input": ["hi", {"content": 3}]})
@example({"choices": [7]}, {})
@example({"choices": [{"message": None}]}, {})
def test_whatever_stands_in_a_row_only_that_row_fails(sample: Any, item: Any) -> None:
    data = JsonlData.model_validate({"type": "jsonl", "source": {"type": "file_content", "content": []}})
    made = asyncio.run(answer(data, Row(item, sample), None))  # type: ignore[arg-type]
    graded = asyncio.run(grade(cast(Any, read_grader(EXACT)), made.sample or {}, item, None))  # type: ignore[arg-type]
    assert graded.passed == (bool(graded.reward) and not graded.errors)
    assert [type(one["content"]) for one in (*made.record["input"], *made.record["output"])].count(str) == len(
        made.record["input"]
    ) + len(made.record["output"])


@pytest.mark.parametrize("value", ["text", [], [3], [{"content": "x"}], {"role": "user"}])
def test_references_that_are_no_messages(value: Any) -> None:
    given = ItemReference(type="item_reference", item_reference="item.input")
    with pytest.raises(TemplateError, match=r"'item.input' is no list of messages"):
        messages_of(given, Row({"input": value}))
