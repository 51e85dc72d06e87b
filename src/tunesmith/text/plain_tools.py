"""Tools in plain words, for chat templates that have no place for them.

The tools stand at the end of the system message (which is made where there is none), a call is a line of the
assistant's turn, and results are one user's turn:

    You may call these tools:
    {"name": "get_weather", "parameters": {…}}

    To call a tool, write a line such as: call NAME {"argument": "value"}

    call get_weather {"city": "Oslo"}

    result of get_weather:
    3 degrees, rain

Only roles that every template takes are used, and turns alternate as the strictest of them wants. Training and asking
both come here, so a model is asked in the words it has learnt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from tunesmith.data.types import Message, ToolCall, Toolset

_SYSTEM = ("system", "developer")
_CALL = re.compile(r"call (\S+) (\{.*\})")
_HOW = 'To call a tool, write a line such as: call NAME {"argument": "value"}'
_ONE = "Call at most one tool in a turn."


def in_plain_words(messages: Sequence[Message], offered: Toolset | None) -> tuple[Message, ...]:
    """The conversation with tools, calls and results written out as text; turns of the assistant stay one each.

    The beginning of a conversation gives the beginning of what the whole gives, up to any of the assistant's turns.
    """
    names: dict[str, str] = {}  # of the calls so far: ids may begin anew in each turn
    made: list[Message] = []
    for is_result, some in groupby(messages, key=lambda message: message.role == "tool"):
        if is_result:
            made.append(Message("user", "\n\n".join(_result(message, names) for message in some)))
            continue
        for message in some:
            names |= {call.id: call.name for call in message.tool_calls}
            made.append(_turn(message))
    if offered is None or not offered.definitions:
        return tuple(made)
    if made[0].role in _SYSTEM:
        text = "\n\n".join(part for part in (made[0].content, offered_text(offered)) if part.strip())
        return (replace(made[0], content=text), *made[1:])
    return (Message("system", offered_text(offered)), *made)


def offered_text(offered: Toolset) -> str:
    """What is said about the tools, definition by definition."""
    definitions = [json.dumps(json.loads(text)["function"], ensure_ascii=False) for text in offered.definitions]
    how = f"{_HOW}\n{_ONE}" if offered.parallel is False else _HOW
    return "\n".join(["You may call these tools:", *definitions, "", how])


def call_line(call: ToolCall) -> str:
    """`call NAME {…}`, on one line; how the arguments were spaced makes no difference."""
    return f"call {call.name} {json.dumps(json.loads(call.arguments), ensure_ascii=False)}"


def read_call_line(line: str) -> tuple[str, str] | None:
    """Name and arguments of a line that is a call; None for any other."""
    match = _CALL.fullmatch(line.strip())
    return (match[1], match[2]) if match else None


def _turn(message: Message) -> Message:
    if not message.tool_calls:
        return replace(message, tools=None)
    lines = [*([message.content] if message.content.strip() else []), *map(call_line, message.tool_calls)]
    return replace(message, content="\n".join(lines), tool_calls=(), tools=None)


def _result(message: Message, names: dict[str, str]) -> str:
    name = message.name or names.get(message.tool_call_id or "")
    return f"result of {name}:\n{message.content}" if name else f"result:\n{message.content}"
