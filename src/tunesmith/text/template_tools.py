"""Tools as a chat template takes them, where it has a place for them, and how to find out whether it has.

Templates agree on most of OpenAI's form, and differ in two things: whether a call's arguments are an object or its
JSON text, and whether any id will do or only one of nine letters and digits (Mistral). Each way is tried on a small
conversation; a template that shows definition, call and result has a place for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.types import Message, ToolCall, Toolset

Turns = list[dict[str, Any]]
Apply = Callable[[Turns, Toolset | None, bool], str]
"""Turns, the tools offered, and whether an answer is begun, to text. Raises `jinja2.TemplateError`, `TypeError`."""

_NAME, _ABOUT, _KEY, _VALUE, _RESULT = "probe_tool", "probe description", "probe_key", "probe value", "probe result"
_DEFINITION = json.dumps(
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": _ABOUT,
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    }
)
PROBE_TOOLS = Toolset((_DEFINITION,))
PROBE_CALL = Message("assistant", "", tool_calls=(ToolCall("call_1", _NAME, json.dumps({_KEY: _VALUE})),))
PROBE = (
    Message("user", "question", tools=PROBE_TOOLS),
    PROBE_CALL,
    Message("tool", _RESULT, tool_call_id="call_1"),
    Message("assistant", "answer"),
)
"""A question with a tool, its call, the result, an answer."""


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a template wants calls: arguments as objects or as text, ids as they are or numbered in nine characters."""

    objects: bool = True
    short_ids: bool = False


def tool_form(apply: Apply) -> ToolForm | None:
    """The way of a template with tools, calls and results; None for one that leaves any of them out or refuses it."""
    from jinja2 import TemplateError

    for form in (ToolForm(), ToolForm(objects=False), ToolForm(short_ids=True), ToolForm(False, True)):
        turns = template_turns(PROBE, form)
        try:
            asked, called = apply(turns[:1], PROBE_TOOLS, True), apply(turns[:2], PROBE_TOOLS, False)
            whole = apply(turns, PROBE_TOOLS, False)
        except (TemplateError, TypeError):
            continue
        if _ABOUT not in asked:
            return None
        call = called.removeprefix(asked)
        if call != called and all(word in call for word in (_NAME, _KEY, _VALUE)):
            return form if _RESULT in whole else None
    return None


def template_turns(messages: Sequence[Message], form: ToolForm) -> Turns:
    """The messages as templates take them; a result carries the name of the tool it comes from."""
    names: dict[str, str] = {}  # of the calls so far: ids may begin anew in each turn
    ids: dict[str, str] = {}
    count = 0
    turns: Turns = []
    for message in messages:
        for call in message.tool_calls:
            count += 1
            names[call.id] = call.name
            ids[call.id] = f"call{count:05d}" if form.short_ids else call.id
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [_call(call, ids[call.id], form) for call in message.tool_calls]
        if message.role == "tool":
            given = message.tool_call_id or ""
            turn["tool_call_id"] = ids.get(given, given)
            turn["name"] = message.name or names.get(given, "")
        turns.append(turn)
    return turns


def tool_objects(offered: Toolset | None) -> list[dict[str, Any]] | None:
    """The definitions as objects; None where there are none, which is what templates expect."""
    return [json.loads(text) for text in offered.definitions] if offered and offered.definitions else None


def _call(call: ToolCall, name: str, form: ToolForm) -> dict[str, Any]:
    arguments: Any = json.loads(call.arguments)
    if not form.objects:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"id": name, "type": "function", "function": {"name": call.name, "arguments": arguments}}
