"""Examples on their way between processes: as plain tuples, so that a million of them cost seconds and not minutes.

The rows as they were read (`values`) stay behind: they take several times the memory of what is learnt from them, and
only splits by a column look at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from sys import intern
from typing import Any

from tunesmith.data.types import Example, Message


class Shipped(list[Example]):
    """A list of examples; another process gets them without their `values`, and texts that many share once a list."""

    def __reduce__(self) -> tuple[Any, ...]:
        shared: dict[str, str] = {}
        return _unpacked, ([_packed(example, shared) for example in self],)


def _packed(example: Example, shared: dict[str, str]) -> tuple[Any, ...]:
    return (
        example.id,
        _turns(example.messages, shared),
        example.expected,
        example.line,
        shared.setdefault(example.source, example.source),
        example.tools,
        example.parallel_tool_calls,
        _turns(example.rejected, shared),
        example.rating,
    )


def _turns(messages: Sequence[Message], shared: dict[str, str]) -> list[tuple[Any, ...]]:
    return [
        (
            intern(m.role),
            shared.setdefault(m.content, m.content) if m.role in ("system", "developer") else m.content,
            m.weight,
            m.name,
            m.tool_calls,
            m.tool_call_id,
            m.tools,
        )
        for m in messages
    ]


def _unpacked(rows: Iterable[tuple[Any, ...]]) -> list[Example]:
    made = []
    for id, messages, expected, line, source, tools, parallel, rejected, rating in rows:
        turns, worse = tuple(Message(*m) for m in messages), tuple(Message(*m) for m in rejected)
        made.append(Example(id, turns, expected, line, source, {}, tools, parallel, worse, rating))
    return made
