"""Messages of a request as the turns that the renderer takes.

Everything that is wrong with them is told at once. Texts in parts are joined with nothing between, as they are when
rows for training are read; `developer` is another word for `system`; a `function` turn is a tool's result.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.types import Message, ToolCall, Toolset
from tunesmith.service.asking.chat_request import Call, ChatMessage
from tunesmith.service.validation import Problem, refusal
from tunesmith.tasks.conversation import leading_system, system_message

_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_OTHER_PARTS = frozenset({"image_url", "input_image", "input_audio", "file", "input_file"})


def turns_of(messages: Sequence[ChatMessage], places: Sequence[str] | None = None) -> tuple[Message, ...]:
    """The turns of a request. `places` are what it calls each message where that is not `messages[i]`.

    Raises `ApiError` 400 with every problem.
    """
    reader = _Reader()
    named = places or [f"messages[{place}]" for place in range(len(messages))]
    turns = tuple(reader.turn(where, message) for where, message in zip(named, messages, strict=True))
    reader.end()
    if reader.problems:
        raise refusal(reader.problems)
    return turns


def as_trained(turns: Sequence[Message], offered: Toolset | None) -> tuple[Message, ...]:
    """The conversation as `tasks.conversation` makes it of a row: the system messages that it begins with are one, and
    none where they say nothing; tools are offered at the first question, or where nobody asks at the first turn.
    """
    said, others = leading_system(turns)
    return _offering((*system_message(said), *others) or turns[:1], offered)


def shortened(
    turns: Sequence[Message], offered: Toolset | None, fits: Callable[[Sequence[Message]], bool]
) -> tuple[Message, ...]:
    """The conversation without its oldest turns, as few of them as will do. System messages at its beginning stay, and
    what stays begins with a question; where not even the last question fits, it is what stays.
    """
    whole = as_trained(turns, offered)
    if fits(whole):
        return whole
    start = len(leading_system(turns)[0])
    questions = [i for i in range(start + 1, len(turns)) if turns[i].role == "user"]
    if not questions:
        return whole
    kept = [as_trained([*turns[:start], *turns[place:]], offered) for place in questions]
    return kept[min(bisect_left(kept, True, key=fits), len(kept) - 1)]


def _offering(turns: Sequence[Message], offered: Toolset | None) -> tuple[Message, ...]:
    if offered is None:
        return tuple(turns)
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
    return (*turns[:first], replace(turns[first], tools=offered), *turns[first + 1 :])


class _Reader:
    """Reads turns in order, and knows which calls wait for a result."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._open: list[str] = []
        self._asked = ""
        self._functions = 0

    def turn(self, where: str, message: ChatMessage) -> Message:
        result = message.role in ("tool", "function")
        if not result:
            self.end()
        role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
        calls = self._calls(where, message)
        text = self._text(where, message, calls)
        answered = self._answered(where, message) if result else None
        if calls:
            self._open, self._asked = [call.id for call in calls], where
        return Message(role, text, name=message.name, tool_calls=calls, tool_call_id=answered)

    def end(self) -> None:
        """No result comes any more for the calls so far."""
        if self._open:
            self._add(
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(self._open)}",
                f"{self._asked}.tool_calls",
            )
        self._open = []

    def _text(self, where: str, message: ChatMessage, calls: tuple[ToolCall, ...]) -> str:
        content = message.content
        if isinstance(content, str):
            return content
        if content is None:
            if message.role == "assistant" and message.refusal is not None:
                return message.refusal
            if not calls and not (message.role == "assistant" and (message.tool_calls or message.function_call)):
                self._add("Invalid value for 'content': expected a string, got null.", f"{where}.content")
            return ""
        if not content:
            self._add(
                f"Invalid value for '{where}.content': expected at least one part, but got an empty array instead.",
                f"{where}.content",
            )
        return "".join(self._part(f"{where}.content[{i}]", part) for i, part in enumerate(content))

    def _part(self, where: str, part: dict[str, Any]) -> str:
        kind = part.get("type")
        if kind in _OTHER_PARTS:
            self._add(
                f"Invalid content type. {kind} is only supported by certain models, and by none on this server: "
                "models here read text.",
                f"{where}.type",
            )
            return ""
        key = "refusal" if kind == "refusal" else "text"
        if kind not in _TEXT_PARTS and kind != "refusal":
            shown = json.dumps(kind, ensure_ascii=False)[:60]
            self._add(f"Invalid value for '{where}.type': expected 'text', but got {shown} instead.", f"{where}.type")
            return ""
        text = part.get(key)
        if not isinstance(text, str):
            self._add(f"Invalid type for '{where}.{key}': expected a string.", f"{where}.{key}", "invalid_type")
            return ""
        return text

    def _calls(self, where: str, message: ChatMessage) -> tuple[ToolCall, ...]:
        if not message.tool_calls and message.function_call is None:
            return ()
        if message.role != "assistant":
            field = "tool_calls" if message.tool_calls else "function_call"
            self._add(f"Invalid value for '{where}.{field}': only the assistant calls tools.", f"{where}.{field}")
            return ()
        if message.tool_calls and message.function_call is not None:
            self._add(
                f"Invalid value for '{where}.function_call': it is the older word for 'tool_calls', which is set too.",
                f"{where}.function_call",
            )
            return ()
        if message.function_call is not None:
            self._functions += 1
            inner = message.function_call
            self._check_arguments(f"{where}.function_call", inner.arguments)
            return (ToolCall(f"call_{self._functions}", inner.name, inner.arguments),)
        made = [self._call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(message.tool_calls or ())]
        names = [call.id for call in made if call is not None]
        if len(set(names)) < len(names):
            self._add(
                f"Invalid value for '{where}.tool_calls': two calls have the same id.",
                f"{where}.tool_calls",
            )
        return tuple(call for call in made if call is not None)

    def _call(self, where: str, call: Call) -> ToolCall | None:
        if call.type != "function" or call.function is None:
            self._add(
                f"Invalid value for '{where}': only calls of type 'function', with a field 'function', are understood.",
                where,
            )
            return None
        self._check_arguments(f"{where}.function", call.function.arguments)
        return ToolCall(call.id, call.function.name, call.function.arguments)

    def _check_arguments(self, where: str, arguments: str) -> None:
        try:
            good = isinstance(json.loads(arguments), dict)
        except (ValueError, RecursionError):
            good = False
        if not good:
            self._add(
                f"Invalid value for '{where}.arguments': expected the JSON text of an object.", f"{where}.arguments"
            )

    def _answered(self, where: str, message: ChatMessage) -> str | None:
        """The call that a result belongs to."""
        if message.role == "function":
            if not self._open:
                self._unmatched(where, "function", "function_call")
                return None
            return self._open.pop(0)
        given = message.tool_call_id
        if given is None:
            self._add(
                f"Missing required parameter: '{where}.tool_call_id'.",
                f"{where}.tool_call_id",
                "missing_required_parameter",
            )
        elif given in self._open:
            self._open.remove(given)
        else:
            self._unmatched(where, "tool", "tool_calls")
        return given

    def _unmatched(self, where: str, role: str, field: str) -> None:
        # The misspelling is OpenAI's, and programs look for this sentence.
        self._add(
            f"Invalid parameter: messages with role '{role}' must be a response to a preceeding message with "
            f"'{field}'.",
            f"{where}.role",
        )

    def _add(self, message: str, param: str, code: str | None = "invalid_value") -> None:
        self.problems.append(Problem(message, param, code))
