"""Turns written as OpenAI and chat templates have them; parts that several formats share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.data.chat import SYSTEM_ROLES
from tunesmith.data.types import Example, Message


def openai_message(message: Message) -> dict[str, Any]:
    """A turn in OpenAI's form: arguments of calls are JSON text, a weight stands only where it is not 1."""
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        made["name"] = message.name
    if message.tool_calls:
        made["content"] = message.content or None
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    if message.role == "assistant" and message.weight != 1:
        made["weight"] = int(message.weight) if message.weight == int(message.weight) else message.weight
    return made


def template_message(message: Message) -> dict[str, Any]:
    """A turn as chat templates take it: as OpenAI's, with arguments of calls as objects, and without a weight."""
    made = openai_message(message)
    made.pop("weight", None)
    if message.tool_calls:
        made["content"] = message.content
        for call in made["tool_calls"]:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return made


def tools_of(example: Example) -> list[Any]:
    """Tool definitions as objects."""
    return [json.loads(text) for text in example.tools]


def shared_turns(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many turns two conversations begin with alike, leaving each at least one of its own."""
    limit = min(len(one), len(other)) - 1
    return next((i for i in range(limit) if one[i] != other[i]), max(limit, 0))


def has_system(messages: Sequence[Message]) -> bool:
    """Whether a conversation begins with a system or developer message."""
    return bool(messages) and messages[0].role in SYSTEM_ROLES


def without_none(losses: Iterable[str | None]) -> list[str]:
    """The losses there are."""
    return [loss for loss in losses if loss is not None]


def lost_weights(messages: Iterable[Message]) -> str | None:
    """A loss, where answers have weights other than 1."""
    uneven = any(m.weight != 1 for m in messages if m.role == "assistant")
    return "weights of answers (all would be learnt)" if uneven else None


def lost_names(messages: Iterable[Message]) -> str | None:
    """A loss, where turns say who speaks."""
    return "names of speakers" if any(m.name is not None for m in messages) else None


def lost_tools(example: Example) -> str | None:
    """A loss, where tools are defined or called."""
    return "tools and their calls" if example.has_tools else None


def lost_parallel(example: Example) -> str | None:
    """A loss, where the row says whether tools may be called at once."""
    return "parallel_tool_calls" if example.parallel_tool_calls is not None else None


def lost_developer(messages: Sequence[Message]) -> str | None:
    """A loss, where the first message is a developer's."""
    named = bool(messages) and messages[0].role == "developer"
    return "the role developer (it would become system)" if named else None
