"""How a model's chat template writes calls, found out by letting it write some, and grammars that hold answers to it.

Of an assistant's turn that calls two tools, only names, arguments and ids differ from one conversation to the next.
What stands around them is the form:

    <tool_call>\n{"name": "   NAME   ", "arguments":    ARGUMENTS   }\n</tool_call>
    ^ head                    ^ middle                              ^ tail
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from math import inf, lcm
from typing import Any
from weakref import WeakKeyDictionary

from tunesmith.data.types import Message, ToolCall, Toolset
from tunesmith.errors import TunesmithError

MOST_CALLS = 16
"""In one answer that is held to calls: a small model may not find an end by itself."""
MOST_STATES = 20_000
"""Remainders that a number may have: compiling 50 times as many takes 20 s and 400 MB."""
_FIRST, _SECOND = ("probe_first", '{"key_a": "value a", "key_b": 2}'), ("probe_second", '{"key_c": "value c"}')
_TAG, _LINE = "<tool_call>", "call "
_CLOSE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LOOSE = {"whitespace_pattern": "[ ]{0,2}"}
_KNOWN: WeakKeyDictionary[Any, CallForm | None] = WeakKeyDictionary()
_ID = "[a-zA-Z0-9]{9}"
"""Ids that a template makes itself have nine characters (Mistral's)."""


@dataclass(frozen=True)
class CallForm:
    """The texts around calls. `between` is None for a template that takes one call in a turn.

    `specials` are the tokenizer's special tokens by their text: engines leave them out of an answer's text.
    `guidance` says how arguments are spaced; `ids` are texts within the form that differ from call to call.
    """

    head: str
    middle: str
    tail: str
    between: str | None
    specials: Mapping[str, int]
    guidance: Mapping[str, Any]
    ids: tuple[str, ...] = ()

    @property
    def mark(self) -> tuple[str, str]:
        """Where a call may begin in an answer, and its mark: anywhere (`tag`), on any line (`line`), or `whole`."""
        seen = self._seen(self.head)
        if _TAG in seen:
            return "tag", _TAG
        return ("line", _LINE) if seen.endswith(_LINE) else ("whole", seen.lstrip())

    def opening(self, names: Sequence[str]) -> re.Pattern[str]:
        """What stands before the arguments of the first call; the group is the name."""
        head = re.sub(r"^(\\\s)+", "", self._pattern(self.head))
        return re.compile(r"\s*" + head + self._name_then_middle(names), re.DOTALL)

    def next_opening(self, names: Sequence[str]) -> re.Pattern[str] | None:
        """What stands between the arguments of one call and those of the next."""
        if self.between is None:
            return None
        return re.compile(self._pattern(self.between) + self._name_then_middle(names), re.DOTALL)

    def as_schema(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """A call as a JSON object, for templates that write nothing else; None for others."""
        try:
            made = json.loads(f"{self._seen(self.head)}{name}{self.middle}{{}}{self._seen(self.tail)}")
        except ValueError:
            return None
        if not isinstance(made, dict):
            return None
        properties = {
            key: moved(arguments, f"#/properties/{key}") if value == {} else {"const": value}
            for key, value in made.items()
        }
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def grammar(self, tools: Sequence[tuple[str, Mapping[str, Any]]], *, several: bool) -> tuple[str, str]:
        """The name of a rule for one or more calls of these tools (name and schema of the arguments), and its rules."""
        more = several and self.between is not None
        rest = f" ({self._quoted(self.between or '')} call){{0,{MOST_CALLS - 1}}}" if more else ""
        rules = [f"calls: {self._quoted(self.head)} listed", f"listed: call{rest} {self._quoted(self.tail)}"]
        rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
        for i, (name, schema) in enumerate(tools):
            rules.append(f"call_{i}: {json.dumps(name)} {self._quoted(self.middle)} arguments_{i}")
            rules.append(f"arguments_{i}: {json_rule(schema, self.guidance)}")
        return "calls", "\n".join(rules)

    def after_mark(self) -> str:
        """What of a grammar's `calls` stands behind the mark."""
        mark = self.mark[1]
        return f"{self._quoted(self.head[self.head.rindex(mark) + len(mark) :])} listed"

    @cached_property
    def _around(self) -> re.Pattern[str]:
        """Splits a text of the form at special tokens and ids."""
        parts = [*map(re.escape, sorted(self.specials, key=len, reverse=True)), *map(re.escape, self.ids)]
        return re.compile(f"({'|'.join(parts)})" if parts else "(?!)()")

    def _parts(self, text: str) -> Iterator[str]:
        return (part for part in self._around.split(text) if part)

    def _seen(self, text: str) -> str:
        return "".join(part for part in self._parts(text) if part not in self.specials)

    def _pattern(self, text: str) -> str:
        made = (_ID if part in self.ids else re.escape(part) for part in self._parts(text) if part not in self.specials)
        return "".join(made)

    def _quoted(self, text: str) -> str:
        """A text of the form as a sequence in a grammar."""
        made = []
        for part in self._parts(text):
            if part in self.specials:
                made.append(f"<[{self.specials[part]}]>")
            else:
                made.append(f"/{_ID}/" if part in self.ids else json.dumps(part))
        return " ".join(made)

    def _name_then_middle(self, names: Sequence[str]) -> str:
        longest_first = sorted(names, key=len, reverse=True)
        return f"({'|'.join(map(re.escape, longest_first))})" + self._pattern(self.middle)


def call_form(renderer: Any) -> CallForm | None:
    """The form in which a `text.render.Renderer` writes calls; None where it cannot be told from what it writes."""
    if renderer not in _KNOWN:
        _KNOWN[renderer] = _found_form(renderer)
    return _KNOWN[renderer]


def _found_form(renderer: Any) -> CallForm | None:
    one, two = _written(renderer, (_FIRST,)), _written(renderer, (_FIRST, _SECOND))
    for text, calls in ((two, (_FIRST, _SECOND)), (one, (_FIRST,))):
        if text is None:
            continue
        places = _places(text, calls)
        if places is None:
            continue
        specials = _special_tokens(renderer)
        stops = [token for token, i in specials.items() if i in renderer.stop_ids]
        tail = text[places[-1][3] :]
        tail = tail[: min((at for stop in stops if (at := tail.find(stop)) >= 0), default=len(tail))]
        ids = tuple(i for i in ("call00001", "call00002") if i in text)
        spaced = ": " in text[places[0][2] : places[0][3]] and ", " in text[places[0][2] : places[0][3]]
        return CallForm(
            head=text[: places[0][0]],
            middle=text[places[0][1] : places[0][2]],
            tail=tail.rstrip("\n") if renderer.tools == "plain" else tail,
            between=text[places[0][3] : places[1][0]] if len(places) > 1 else None,
            specials=specials,
            guidance=_CLOSE if spaced else _LOOSE,
            ids=ids,
        )
    # Plain words are ours whatever the template does with the turns around them.
    plain = renderer.tools == "plain"
    return CallForm(_LINE, " ", "", f"\n{_LINE}", _special_tokens(renderer), _CLOSE) if plain else None


def json_rule(schema: Mapping[str, Any], guidance: Mapping[str, Any]) -> str:
    """A schema as it stands in a grammar."""
    return f"%json {json.dumps({**schema, 'x-guidance': dict(guidance)})}"


def moved(schema: Any, place: str) -> Any:
    """A schema whose references to itself are right where it stands at `place` of another."""
    if isinstance(schema, list):
        return [moved(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    refers = isinstance(schema.get("$ref"), str) and schema["$ref"].startswith("#")
    made = {key: moved(value, place) for key, value in schema.items()}
    return {**made, "$ref": place + schema["$ref"][1:]} if refers else made


def schema_fault(schema: Mapping[str, Any]) -> str | None:
    """Why answers cannot be held to a JSON schema, in one line; None where they can."""
    from llguidance import LLMatcher, LLTokenizer

    states = lcm(*_steps(schema))
    if states > MOST_STATES:
        return f"the numbers of 'multipleOf' are too much to keep (their least common multiple is over {MOST_STATES})"
    try:
        matcher = LLMatcher(LLTokenizer("byte"), f"start: {json_rule(schema, _LOOSE)}\n", log_level=0)
    except ValueError as error:
        return _one_line(str(error))
    if matcher.is_error():
        return _one_line(matcher.get_error())
    matcher.compute_bitmask()  # only now is it known whether an answer can begin
    if matcher.is_stopped() and not matcher.is_accepting():
        return "no answer fits it; it may refer to itself and to nothing else"
    return None


def _steps(schema: Any) -> Iterator[int]:
    """The digits of every `multipleOf`, as a number: the compiler follows remainders of it."""
    if isinstance(schema, list):
        for one in schema:
            yield from _steps(one)
    elif isinstance(schema, Mapping):
        step = schema.get("multipleOf")
        if isinstance(step, int | float) and not isinstance(step, bool) and 0 < abs(step) < inf:
            yield int("".join(map(str, Decimal(str(step)).normalize().as_tuple().digits)))
        for one in schema.values():
            yield from _steps(one)


def _written(renderer: Any, calls: Sequence[tuple[str, str]]) -> str | None:
    """An assistant's turn that makes these calls; None where the template refuses it."""
    definitions = tuple(
        json.dumps({"type": "function", "function": {"name": name, "description": name, "parameters": {}}})
        for name, _ in calls
    )
    made = tuple(ToolCall(f"call_{i}", name, arguments) for i, (name, arguments) in enumerate(calls, 1))
    turns = (Message("user", "question", tools=Toolset(definitions)), Message("assistant", "", tool_calls=made))
    try:
        segments = renderer.segments(turns, last_only=True)
    except TunesmithError:
        return None
    # In plain words a system turn may have come before, so turns are not counted as they are here.
    return next((segment.text for segment in reversed(segments) if segment.message is not None), None)


def _places(text: str, calls: Sequence[tuple[str, str]]) -> list[tuple[int, int, int, int]] | None:
    """Where each call's name and arguments begin and end; None where they do not stand there, one after the other."""
    found = []
    at = 0
    for name, arguments in calls:
        begin = text.find(name, at)
        if begin < 0:
            return None
        span = _object_at(text, begin + len(name), json.loads(arguments))
        if span is None:
            return None
        found.append((begin, begin + len(name), *span))
        at = span[1]
    return found


def _object_at(text: str, at: int, wanted: Any) -> tuple[int, int] | None:
    decoder = json.JSONDecoder()
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            value, end = None, at
        if value == wanted:
            return at, end
        at += 1
    return None


def _special_tokens(renderer: Any) -> dict[str, int]:
    tokenizer = renderer.tokenizer
    names = tokenizer.convert_ids_to_tokens(list(tokenizer.all_special_ids))
    return dict(zip(names, tokenizer.all_special_ids, strict=True))


def _one_line(text: str) -> str:
    """What llguidance says, without the place in a grammar that the user has not written."""
    lines = [line.strip() for line in text.strip().splitlines() if not re.match(r"\s*\d+ \||\s*\^+\s*$", line)]
    told = " ".join(line for line in lines if line and set(line) != {"^"})
    return re.sub(r"^at \d+\(\d+\): ", "", told)[:400]
