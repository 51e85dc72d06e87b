"""Rows that hold a conversation: `messages`, each with role and content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.findings import FindingLog
from tunesmith.data.types import Message

_SYSTEM = ("system", "developer")
_ROLES = (*_SYSTEM, "user", "assistant")
_TOOL_ROLES = ("tool", "function")
_TOOL_FIELDS = ("tools", "functions", "parallel_tool_calls", "function_call")
CHAT_FIELDS = ("messages", *_TOOL_FIELDS)
"""Fields of a chat row that are read, or spoken of in findings."""
_CALL_KEYS = ("tool_calls", "function_call", "tool_call_id")
_KNOWN_KEYS = {"role", "content", "weight", "name", *_CALL_KEYS}


def read_messages(values: Mapping[str, Any], line: int, log: FindingLog) -> tuple[Message, ...] | None:
    """The turns of one row, or None where it cannot be used; every reason is noted in `log`.

    Accepted: one system or developer message at most, first, then user and assistant in turn, ending with the
    assistant. A row with several faults is reported for each of them.
    """
    raw = values.get("messages")
    if not isinstance(raw, list) or not raw:
        log.add("messages_not_list", line, field="messages")
        return None
    if any(not isinstance(item, dict) for item in raw):
        number = next(n for n, item in enumerate(raw, 1) if not isinstance(item, dict))
        log.add("message_not_object", line, f"message {number}", field="messages")
        return None
    if any(item.get("role") in _TOOL_ROLES or any(item.get(key) for key in _CALL_KEYS) for item in raw):
        log.add("tool_calls_not_learnt", line, field="messages")
        return None
    messages = [_message(item, number, line, log) for number, item in enumerate(raw, 1)]
    turns = [message for message in messages if message is not None]
    if len(turns) < len(messages) or not _in_order(turns, line, log) or not _worth_learning(turns, line, log):
        return None
    _note_unused(values, raw, line, log)
    return tuple(turns)


def _message(item: Mapping[str, Any], number: int, line: int, log: FindingLog) -> Message | None:
    role, content, weight = item.get("role"), item.get("content"), item.get("weight", 1)
    usable = True
    if not isinstance(role, str) or role not in _ROLES:
        log.add("unknown_role", line, f"message {number} has {_shown(role)}", field="messages")
        usable = False
    if not isinstance(content, str):
        log.add("content_not_text", line, f"message {number} holds {_shown(content)}", field="messages")
        usable = False
    good_weight = isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 <= weight <= 1
    if not good_weight or ("weight" in item and role in ("user", *_SYSTEM)):
        log.add("bad_weight", line, f"message {number} has weight {_shown(item['weight'])}", field="messages")
        usable = False
    return Message(str(role), str(content), float(weight)) if usable else None


def _in_order(turns: list[Message], line: int, log: FindingLog) -> bool:
    body = turns[1:] if turns[0].role in _SYSTEM else turns
    offset = len(turns) - len(body) + 1
    good = True
    for index, message in enumerate(body):
        expected = ("user", "assistant")[index % 2]
        if message.role != expected:
            detail = f"message {index + offset} is {message.role}, expected {expected}"
            log.add("roles_out_of_order", line, detail, field="messages")
            good = False
            break
    if turns[-1].role != "assistant":
        log.add("no_final_answer", line, f"it ends with {turns[-1].role}", field="messages")
        good = False
    return good


def _worth_learning(turns: list[Message], line: int, log: FindingLog) -> bool:
    good = True
    if any(not turn.content.strip() for turn in turns if turn.role == "user"):
        log.add("empty_prompt", line, field="messages")
        good = False
    if any(not turn.content.strip() for turn in turns if turn.role == "assistant"):
        log.add("empty_answer", line, field="messages")
        good = False
    elif not any(turn.weight for turn in turns if turn.role == "assistant"):
        log.add("nothing_to_learn", line, field="messages")
        good = False
    return good


def _note_unused(values: Mapping[str, Any], raw: list[Any], line: int, log: FindingLog) -> None:
    fields = [name for name in _TOOL_FIELDS if values.get(name)]
    if fields:
        log.add("tools_not_learnt", line, ", ".join(fields), field=fields[0])
    unknown = sorted({str(key) for item in raw for key in item if key not in _KNOWN_KEYS})
    if unknown:
        log.add("unknown_message_key", line, ", ".join(unknown), field="messages")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
