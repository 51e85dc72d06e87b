"""From what a row says to an example: the system message of the recipe, and an id by content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.types import Content, Example, Message, Row
from tunesmith.errors import RecipeError

_ENCODER = json.JSONEncoder(ensure_ascii=False)


class ExampleMaker:
    """Makes examples with ids by content; equal rows are told apart by a counter, unless repeats are not counted."""

    def __init__(self, system: str | None, *, count_repeats: bool = True) -> None:
        if system is not None and not system.strip():
            raise RecipeError("data.system is empty", where="data.system", fix="write a message, or remove the key")
        self._system = Message("system", system) if system is not None else None
        self._seen: Counter[str] = Counter()
        self._count = count_repeats

    def make(self, content: Content, row: Row) -> Example:
        """The example of a row."""
        if self._system is not None and content.kind != "text":
            content = replace(
                content,
                messages=self._with_system(content.messages),
                rejected=self._with_system(content.rejected) if content.rejected else (),
            )
        key = content_key(
            content.messages,
            tools=content.tools,
            parallel_tool_calls=content.parallel_tool_calls,
            rejected=content.rejected,
            rating=content.rating,
        )
        if self._count:
            self._seen[key] += 1
            if (count := self._seen[key]) > 1:
                key = f"{key}-{count}"
        return Example(
            key, content.messages, content.expected, row.line, row.source, row.values,
            content.tools, content.parallel_tool_calls, content.rejected, content.rating,
        )  # fmt: skip

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if self._system is None or messages[0].role in ("system", "developer"):
            return messages
        return (self._system, *messages)


def content_key(
    messages: Sequence[Message],
    *,
    tools: Sequence[str] = (),
    parallel_tool_calls: bool | None = None,
    rejected: Sequence[Message] = (),
    rating: bool | None = None,
) -> str:
    """16 hexadecimal characters of the SHA-256 over what is said.

    That is role, content and weight of every turn, and what else there is: names, tools, calls, the other answer, the
    rating. How arguments are spaced and what calls are numbered by makes no difference.
    """
    said: list[Any] = _turns(messages)
    more = [list(map(_canonical, tools)), parallel_tool_calls, _turns(rejected), rating]
    if more != [[], None, [], None]:
        said.append(more)
    return hashlib.sha256(_ENCODER.encode(said).encode("utf-8")).hexdigest()[:16]


def _turns(messages: Sequence[Message]) -> list[Any]:
    numbers: dict[str, int] = {}
    count = 0
    turns: list[Any] = []
    for m in messages:
        turn: list[Any] = [m.role, m.content, m.weight]
        if m.name is not None or m.tool_calls or m.tool_call_id is not None:
            calls = []
            for call in m.tool_calls:
                numbers[call.id] = count
                count += 1
                calls.append([call.name, numbers[call.id], _canonical(call.arguments)])
            turn += [m.name, calls, numbers.get(m.tool_call_id, -1) if m.tool_call_id is not None else None]
        turns.append(turn)
    return turns


def _canonical(text: str) -> Any:
    """JSON text without regard to spaces and the order of keys."""
    return json.dumps(json.loads(text), sort_keys=True)
