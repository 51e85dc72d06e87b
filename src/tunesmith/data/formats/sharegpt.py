"""ShareGPT: `conversations` of `{"from": "human" | "gpt" | …, "value": …}`, with `system` and `tools` beside them.

Tool turns are LLaMA-Factory's: `function_call` holds a call or a list of calls as JSON, `observation` the result, or a
JSON list of the results of several calls. `chosen` and `rejected` make a preference, `kto_tag` or `label` a rating. A
turn's `weight` is read as Axolotl reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.chat import expected_of, parallel_of, read_tools, read_turns, shown
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.messages import (
    lost_developer,
    lost_names,
    lost_parallel,
    shared_turns,
    tools_of,
    without_none,
)
from tunesmith.data.formats.preference import read_sides
from tunesmith.data.formats.rated import rated
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.json_rows import parse_cell
from tunesmith.data.types import Content, Example, Kind, Message, Row, ToolCall

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}
_NAMES = {"system": "system", "developer": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
_LISTS = ("conversations", "conversation")


class ShareGPT:
    """Conversations of from and value."""

    name = "sharegpt"
    title = "ShareGPT: conversations of from and value"
    columns = (*_LISTS, "system", "tools", "chosen", "rejected", "kto_tag", "label", "parallel_tool_calls")
    kinds: frozenset[Kind] = frozenset({"answer", "preference", "rated"})
    keeps_others = True

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with a list of conversations."""
        name = sample.any(*_LISTS)
        if name is None or sample.share(name, list) < 0.5:
            return None
        more = [other for other in ("tools", "chosen", "rejected", "kto_tag") if sample.has(other)]
        beside = f", beside {', '.join(more)}" if more else ""
        return Recognition(0.9, f"{name} with turns of from and value{beside}")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The row's conversation, or both of them."""
        values = row.values
        name = next((n for n in _LISTS if n in values), _LISTS[0])
        turns = _messages(values.get(name), row, log, name)
        tools = read_tools(values.get("tools"), row.line, log)
        if turns is None or tools is None:
            return None
        system = values.get("system")
        if isinstance(system, str) and system.strip() and turns[0].get("role") not in ("system", "developer"):
            turns = [{"role": "system", "content": system}, *turns]
        if "chosen" in values or "rejected" in values:
            sides = [_messages(_as_list(values.get(side)), row, log, side) for side in ("chosen", "rejected")]
            if sides[0] is None or sides[1] is None:
                return None
            return read_sides(turns, sides[0], sides[1], row, log, tools=tools, options=values)
        if values.get("kto_tag") is not None or values.get("label") is not None:
            return rated(turns, row, log, tools)
        read = read_turns(turns, row.line, log, field=name)
        return Content(read, expected_of(read), tools, parallel_of(values)) if read is not None else None

    def losses(self, example: Example) -> list[str]:
        """Names, which call a result is of where the order does not say it, and sides of several turns."""
        turns = (*example.messages, *example.rejected)
        sides: list[Message] = []
        if example.rejected:
            cut = shared_turns(example.messages, example.rejected)
            sides = [*example.messages[cut:], *example.rejected[cut:]]
        return without_none(
            [
                lost_names(turns),
                lost_developer(example.messages),
                lost_parallel(example),
                "the order of tool results" if _out_of_order(example.messages) else None,
                "answers that are more than one turn"
                if len(sides) > 2 or any(m.content and m.tool_calls for m in sides)
                else None,
            ]
        )

    def write(self, example: Example) -> dict[str, Any]:
        """A row LLaMA-Factory takes; of an answer with several turns the last is written."""
        row: dict[str, Any]
        if example.kind == "preference":
            cut = shared_turns(example.messages, example.rejected)
            row = {"conversations": _turns(example.messages[:cut])}
            for side, turns in (("chosen", example.messages), ("rejected", example.rejected)):
                row[side] = _turns(turns[-1:])[-1]
        else:
            row = {"conversations": _turns(example.messages)}
        if example.rating is not None:
            row["kto_tag"] = example.rating
        if example.tools:
            row["tools"] = json.dumps([_bare(tool) for tool in tools_of(example)], ensure_ascii=False)
        return row


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


def _messages(raw: Any, row: Row, log: FindingLog, field: str) -> list[dict[str, Any]] | None:
    """The turns in OpenAI's form, not yet checked for their order; None where a turn cannot be read."""
    if not isinstance(raw, list) or not raw:
        log.add("messages_not_list", row.line, field=field)
        return None
    made: list[dict[str, Any]] = []
    waiting = 0
    for number, turn in enumerate(raw, 1):
        if not isinstance(turn, dict):
            log.add("message_not_object", row.line, f"message {number}", field=field)
            return None
        if "from" not in turn and "role" in turn:
            made.append(turn)
            continue
        speaker = turn.get("from")
        role = _ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            log.add("unknown_role", row.line, f"message {number} has {shown(speaker)}", field=field)
            return None
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        value = turn.get("value")
        if role == "call":
            calls = _calls(value)
            if isinstance(calls, str):
                log.add("tool_call_broken", row.line, f"message {number}: {calls}", field=field)
                return None
            waiting = len(calls)
            before = made[-1] if made else {}
            if before.get("role") == "assistant" and "tool_calls" not in before and _weight(before) == _weight(rest):
                before["tool_calls"] = calls
            else:
                made.append({"role": "assistant", "content": None, "tool_calls": calls, **rest})
        elif role == "tool":
            results = _results(value, waiting)
            waiting = max(0, waiting - len(results))
            made += [{"role": "tool", "content": result, **rest} for result in results]
        else:
            made.append({"role": role, "content": value, **rest})
    return made


def _weight(turn: Mapping[str, Any]) -> Any:
    return turn.get("weight", 1)


def _calls(value: Any) -> list[Any] | str:
    """Calls out of a JSON text, or what is wrong with it."""
    if isinstance(value, str):
        parsed = parse_cell(value)
        if parsed.problem:
            return f"not JSON: {parsed.problem}"
        value = parsed.value
    calls = value if isinstance(value, list) else [value]
    if not calls or any(not isinstance(call, dict) for call in calls):
        return "no call with name and arguments"
    return calls


def _results(value: Any, waiting: int) -> list[Any]:
    """The results in an observation: several where several calls wait for one, and it is a list of so many."""
    if waiting > 1 and isinstance(value, str) and value.lstrip().startswith("["):
        parsed = parse_cell(value)
        if not parsed.problem and isinstance(parsed.value, list) and len(parsed.value) == waiting:
            return [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in parsed.value]
    return [value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)]


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    results: list[str] = []
    waiting = 0
    for message in messages:
        if message.role == "tool":
            results.append(message.content)
            if len(results) == waiting:
                value = results[0] if waiting == 1 else json.dumps(results, ensure_ascii=False)
                made.append({"from": "observation", "value": value})
                results = []
            continue
        weight = {} if message.weight == 1 or message.role != "assistant" else {"weight": _plain(message.weight)}
        if message.content or not message.tool_calls:
            made.append({"from": _NAMES[message.role], "value": message.content, **weight})
        if message.tool_calls:
            waiting = len(message.tool_calls)
            calls = [_call(call) for call in message.tool_calls]
            value = json.dumps(calls if waiting > 1 else calls[0], ensure_ascii=False)
            made.append({"from": "function_call", "value": value, **weight})
    return made


def _call(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": json.loads(call.arguments)}


def _bare(tool: dict[str, Any]) -> dict[str, Any]:
    """The definition of a function alone, where the object around it says nothing more."""
    inner: dict[str, Any] = tool["function"]
    return inner if tool == {"type": "function", "function": inner} and "function" not in inner else tool


def _plain(weight: float) -> float | int:
    return int(weight) if weight == int(weight) else weight


def _out_of_order(messages: Sequence[Message]) -> bool:
    """Whether results stand in another order than their calls."""
    waiting: list[str] = []
    for message in messages:
        if message.tool_calls:
            waiting = [call.id for call in message.tool_calls]
        elif message.role == "tool" and waiting and message.tool_call_id != waiting.pop(0):
            return True
    return False


FORMAT = ShareGPT()
