"""Reading calls of tools out of what a model has written.

Understood are the plain words of `plain_tools`, and the ways of well-known templates: `<tool_call>{…}</tool_call>`
(Hermes, Qwen), one object per line with `name` and `parameters` (Llama), and a list of objects with `name` and
`arguments` (Mistral). Anything else, and a call whose arguments are no JSON object, remains text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tunesmith.data.chat import calls_text
from tunesmith.data.types import ToolCall
from tunesmith.text.plain_tools import read_call_line

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_MARKS = ("<|python_tag|>", "[TOOL_CALLS]")


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """What the assistant says, and what it calls; ids are `call_1`, `call_2`, …"""

    content: str
    calls: tuple[ToolCall, ...] = ()

    @property
    def expected_form(self) -> str:
        """As `Example.expected` has it: the calls as a JSON list, or the text where nothing is called."""
        return calls_text(self.calls) if self.calls else self.content


def read_answer(text: str) -> ReadAnswer:
    """The answer to a conversation that offers tools, read; text in which no call is found is content."""
    for read in (_tagged, _lines, _objects):
        found = read(text)
        if found is not None:
            content, calls = found
            made = (ToolCall(f"call_{n}", name, arguments) for n, (name, arguments) in enumerate(calls, 1))
            return ReadAnswer(content, tuple(made))
    return ReadAnswer(text)


Found = tuple[str, list[tuple[str, str]]] | None


def _tagged(text: str) -> Found:
    parts = _TAGGED.findall(text)
    calls = [call for part in parts if (call := _call(_parsed(part))) is not None]
    return (_TAGGED.sub("", text).strip(), calls) if calls and len(calls) == len(parts) else None


def _lines(text: str) -> Found:
    """Calls in plain words stand behind everything else."""
    lines = text.rstrip("\n").split("\n")
    calls: list[tuple[str, str]] = []
    while lines and (line := read_call_line(lines[-1])) is not None and isinstance(_parsed(line[1]), dict):
        calls.insert(0, line)
        lines.pop()
    return ("\n".join(lines), calls) if calls else None


def _objects(text: str) -> Found:
    """The whole text is an object, several on lines of their own or with a semicolon between, or a list of them."""
    bare = text.strip()
    for mark in _MARKS:
        bare = bare.removeprefix(mark).strip()
    if not bare.startswith(("{", "[")):
        return None
    whole = _parsed(bare)
    values = whole if isinstance(whole, list) else [whole]
    if whole is None:
        values = [_parsed(part) for part in re.split(r"\s*[;\n]\s*(?=\{)", bare)]
    calls = [_call(value) for value in values]
    made = [call for call in calls if call is not None]
    return ("", made) if made and len(made) == len(calls) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(value: Any) -> tuple[str, str] | None:
    """Name and arguments of an object that is a call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    return (value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None
