"""Rows that hold a conversation: `messages`, each with role and content, in OpenAI's form.

Tool calls are read too: `tools` and `tool_calls`, and the older `functions` and `function_call`, which become the
newer. Arguments may be JSON text (OpenAI's rule) or an object (what chat templates take). A conversation is

    [system | developer], then (user, (assistant with calls, one tool turn per call)*, assistant)*

and ends with the assistant, whose last turn may be a call. A content may be a list of text parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tunesmith.data.findings import FindingLog
from tunesmith.data.json_rows import parse_cell
from tunesmith.data.types import Content, Message, ToolCall

SYSTEM_ROLES = ("system", "developer")
CHAT_FIELDS = ("messages", "tools", "functions", "parallel_tool_calls", "function_call")
"""Fields of a chat row that are read."""
_ROLES = frozenset({*SYSTEM_ROLES, "user", "assistant", "tool", "function"})
_KNOWN_KEYS = frozenset(
    {"role", "content", "weight", "loss_weight", "name", "tool_calls", "function_call", "tool_call_id"}
)
_PLAIN_KEYS = frozenset({"role", "content"})
Final = Literal["assistant", "user"]


def read_chat(values: Mapping[str, Any], line: int, log: FindingLog, *, final: Final = "assistant") -> Content | None:
    """What a row with `messages` says, or None where it cannot be used; every reason is noted in `log`.

    The conversation ends with `final`. A row with several faults is reported for each of them.
    """
    turns = read_turns(values.get("messages"), line, log, final=final)
    tools = read_tools(values.get("tools") or values.get("functions"), line, log)
    if turns is None or tools is None:
        return None
    return Content(turns, expected_of(turns), tools, parallel_of(values))


def parallel_of(values: Mapping[str, Any]) -> bool | None:
    """`parallel_tool_calls` of a row, where it says so."""
    value = values.get("parallel_tool_calls")
    return value if isinstance(value, bool) else None


def expected_of(turns: Sequence[Message]) -> str:
    """The bare answer: the last turn's calls as JSON, or its text where it calls nothing; of a question nothing."""
    last = turns[-1]
    if last.role != "assistant":
        return ""
    return calls_text(last.tool_calls) if last.tool_calls else last.content


def calls_text(calls: Sequence[ToolCall]) -> str:
    """Calls as a JSON list of names and arguments."""
    made = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]
    return json.dumps(made, ensure_ascii=False)


def read_turns(
    raw: Any, line: int, log: FindingLog, *, field: str = "messages", final: Final = "assistant"
) -> tuple[Message, ...] | None:
    """The turns of a list of messages, or None where it is no conversation; every reason is noted in `log`."""
    if not isinstance(raw, list) or not raw:
        log.add("messages_not_list", line, field=field)
        return None
    if any(not isinstance(item, dict) for item in raw):
        number = next(n for n, item in enumerate(raw, 1) if not isinstance(item, dict))
        log.add("message_not_object", line, f"message {number}", field=field)
        return None
    reader = _TurnReader(line, log, field)
    messages = [reader.message(item, number) for number, item in enumerate(raw, 1)]
    turns = [message for message in messages if message is not None]
    if len(turns) < len(messages):
        return None
    if not _in_order(turns, line, log, field, final) or not _worth_learning(turns, line, log, field, final):
        return None
    unknown = {str(key) for item in raw if not item.keys() <= _KNOWN_KEYS for key in item.keys() - _KNOWN_KEYS}
    if unknown:
        log.add("unknown_message_key", line, ", ".join(sorted(unknown)), field=field)
    return tuple(turns)


def read_tools(value: Any, line: int, log: FindingLog) -> tuple[str, ...] | None:
    """Tool definitions as JSON texts in OpenAI's form; None where they cannot be read.

    `value` is a list, or JSON text of one, of `{"type": "function", "function": {…}}` or of the inner object alone.
    """
    if isinstance(value, str):
        if not value.strip():
            return ()
        parsed = parse_cell(value)
        if parsed.problem:
            log.add("tools_broken", line, f"not JSON: {parsed.problem}", field="tools")
            return None
        value = parsed.value
    if not value:
        return ()
    items = value if isinstance(value, list) else [value]
    made = []
    for number, item in enumerate(items, 1):
        inner = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            log.add("tools_broken", line, f"tool {number} has no name", field="tools")
            return None
        rest = {key: v for key, v in item.items() if key not in ("type", "function")} if inner is not item else {}
        kind = item.get("type", "function") if inner is not item else "function"
        made.append(json.dumps({"type": kind, "function": inner, **rest}, ensure_ascii=False))
    return tuple(made)


class _TurnReader:
    """Reads the messages of one conversation in order, giving calls without a name of their own the next number."""

    def __init__(self, line: int, log: FindingLog, field: str) -> None:
        self._line, self._log, self._field = line, log, field
        self._calls = 0
        self._open: list[str] = []

    def message(self, item: Mapping[str, Any], number: int) -> Message | None:
        role, content = item.get("role"), item.get("content")
        if item.keys() == _PLAIN_KEYS and type(content) is str and role in ("user", "assistant", "system"):
            self._open = []
            return Message(role, content)
        usable = True
        if role is None:
            usable = self._refuse("role_missing", f"message {number}")
        elif not isinstance(role, str) or role not in _ROLES:
            usable = self._refuse("unknown_role", f"message {number} has {shown(role)}")
        calls: tuple[ToolCall, ...] | None = ()
        if role == "assistant":
            calls = self._tool_calls(item, number)
        elif item.get("tool_calls") or item.get("function_call"):
            usable = self._refuse("tool_call_broken", f"message {number}: only the assistant calls tools")
        if calls is None:
            return None
        text = _text(content)
        if text is None and content is None and calls:
            text = ""
        if text is None:
            usable = self._refuse("content_not_text", f"message {number} holds {_kind(content)}")
        weight = self._weight(item, number, role)
        if not usable or weight is None or not isinstance(role, str) or text is None:
            return None
        name = item.get("name")
        if name is not None and not isinstance(name, str):
            self._log.add("unknown_message_key", self._line, f"name is {shown(name)}", field=self._field)
            name = None
        call_id = self._answered(item, number) if role in ("tool", "function") else None
        if role in ("tool", "function") and call_id is None:
            return None
        if role == "function":
            role = "tool"
        return Message(role, text, weight, name, calls, call_id)

    def _weight(self, item: Mapping[str, Any], number: int, role: Any) -> float | None:
        key = "weight" if "weight" in item else "loss_weight"
        if key not in item:
            return 1.0
        weight = item[key]
        good = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= 1
        # LLaMA-Factory writes a loss weight of 0 on every turn that is no answer, which says nothing new.
        if good and (role == "assistant" or (key == "loss_weight" and not weight)):
            return float(weight) if role == "assistant" else 1.0
        self._refuse("bad_weight", f"message {number} has weight {shown(weight)}")
        return None

    def _tool_calls(self, item: Mapping[str, Any], number: int) -> tuple[ToolCall, ...] | None:
        raw = item.get("tool_calls")
        old = item.get("function_call")
        if old and not raw:
            raw = [{"function": old}]
        if not raw:
            self._open = []
            return ()
        made = []
        for entry in raw if isinstance(raw, list) else [raw]:
            call = self._call(entry)
            if isinstance(call, str):
                self._refuse("tool_call_broken", f"message {number}: {call}")
                return None
            made.append(call)
        self._open = [call.id for call in made]
        return tuple(made)

    def _call(self, entry: Any) -> ToolCall | str:
        inner = entry.get("function", entry) if isinstance(entry, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
            return "a call without a name"
        arguments = inner.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif isinstance(arguments, str):
            parsed = parse_cell(arguments)
            if parsed.problem:
                return f"the arguments of {inner['name']} are not JSON: {parsed.problem}"
            if not isinstance(parsed.value, dict):
                return f"the arguments of {inner['name']} are not a JSON object"
        elif arguments is None:
            arguments = "{}"
        else:
            return f"the arguments of {inner['name']} are {_kind(arguments)}"
        self._calls += 1
        given = entry.get("id")
        return ToolCall(given if isinstance(given, str) and given else f"call_{self._calls}", inner["name"], arguments)

    def _answered(self, item: Mapping[str, Any], number: int) -> str | None:
        """The call a result belongs to: as it says, else the next one that has no result yet."""
        given = item.get("tool_call_id")
        call_id = given if isinstance(given, str) and given else (self._open[0] if self._open else None)
        if call_id is None or call_id not in self._open:
            self._refuse("tool_result_unmatched", f"message {number} answers {shown(given)}")
            return None
        self._open.remove(call_id)
        return call_id

    def _refuse(self, code: str, detail: str) -> bool:
        self._log.add(code, self._line, detail, field=self._field)
        return False


def _text(content: Any) -> str | None:
    """A content as one text: a text, or a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = [_part_text(part) for part in content]
    return "".join(text for text in texts if text is not None) if None not in texts else None


def _part_text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "input_text", "output_text"):
        return None
    text = part.get("text", part.get("value"))
    return text if isinstance(text, str) else None


def _in_order(turns: Sequence[Message], line: int, log: FindingLog, field: str, final: Final) -> bool:
    start = 1 if turns[0].role in SYSTEM_ROLES else 0
    expected: tuple[str, ...] = ("user",)
    waiting = 0
    good = True
    for number, message in enumerate(turns[start:], start + 1):
        if message.role not in expected:
            detail = f"message {number} is {message.role}, expected {' or '.join(expected)}"
            log.add("roles_out_of_order", line, detail, field=field)
            good = False
            break
        if message.role == "assistant":
            waiting = len(message.tool_calls)
            expected = ("tool",) if waiting else ("user",)
        elif message.role == "tool":
            waiting -= 1
            expected = ("tool",) if waiting else ("assistant",)
        else:
            expected = ("assistant",)
    if turns[-1].role != final:
        code = "no_final_answer" if final == "assistant" else "no_final_question"
        log.add(code, line, f"it ends with {turns[-1].role}", field=field)
        good = False
    return good


def _worth_learning(turns: Sequence[Message], line: int, log: FindingLog, field: str, final: Final) -> bool:
    good = True
    if any(turn.role == "user" and not turn.content.strip() for turn in turns):
        log.add("empty_prompt", line, field=field)
        good = False
    answers = [turn for turn in turns if turn.role == "assistant"]
    if any(not turn.content.strip() and not turn.tool_calls for turn in answers):
        log.add("empty_answer", line, field=field)
        good = False
    elif final == "assistant" and not any(turn.weight for turn in answers):
        log.add("nothing_to_learn", line, field=field)
        good = False
    return good


def _kind(value: Any) -> str:
    if isinstance(value, list):
        kinds = sorted({str(part.get("type")) for part in value if isinstance(part, dict) and _part_text(part) is None})
        return f"a list with {', '.join(kinds)}" if kinds else "a list"
    return shown(value)


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
