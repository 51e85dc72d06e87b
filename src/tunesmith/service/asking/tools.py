"""Tools of a request: what is offered, who chooses, and the form to which an answer that calls them is held."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.data.types import Toolset
from tunesmith.service.asking.call_form import CallForm, json_rule, moved, schema_fault
from tunesmith.service.asking.chat_request import ChatRequest, Function
from tunesmith.service.errors import ApiError
from tunesmith.service.validation import Problem, refusal

Choice = Literal["none", "auto", "required"]
_ANYTHING: Mapping[str, Any] = {"type": "object"}
_JSON_SPACE = {"whitespace_pattern": "(\\n[ ]{0,16})?", "item_separator": ", ?", "key_separator": ": ?"}
"""JSON on one line, or with a line for each part: a small model that draws its answers would spend all its tokens on
more white space than that.
"""


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request, of which those `allowed` may be called; the model is told of all, as it was in training.

    `choice`: whether it must call one (`required`) or may. `legacy`: they came as `functions` and are answered so.
    """

    functions: tuple[Function, ...] = ()
    allowed: tuple[Function, ...] = ()
    choice: Choice = "none"
    parallel: bool | None = None
    legacy: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that may be called."""
        return tuple(function.name for function in self.allowed)

    @property
    def several(self) -> bool:
        """Whether one answer may make several calls."""
        return self.parallel is not False and not self.legacy

    def toolset(self) -> Toolset | None:
        """What the model is told; None where it is told nothing."""
        if not self.functions or self.choice == "none":
            return None
        definitions = [{"type": "function", "function": function.given} for function in self.functions]
        return Toolset(tuple(json.dumps(one, ensure_ascii=False) for one in definitions), self.parallel)

    @property
    def held(self) -> bool:
        """Whether answers are to be held to a form for the tools' sake."""
        if self.choice == "auto":
            return len(self.allowed) < len(self.functions) or any(function.strict for function in self.allowed)
        return self.choice == "required"


def offer_of(request: ChatRequest) -> Offer:
    """The tools of a chat request. Raises `ApiError` 400 with every problem."""
    if request.tools is not None and request.functions is not None:
        raise ApiError(
            400,
            "'functions' is the older word for 'tools'; set one of the two.",
            param="functions",
            code="invalid_parameter_combination",
        )
    if request.functions is not None:
        checked = _checked(request.functions, "functions", "")
        _only_with("function_call", request.function_call, checked)
        offer = Offer(checked, checked, _default(checked), legacy=True)
        return _chosen(offer, request.function_call, "function_call")
    problems = [
        Problem(
            f"Invalid value for 'tools[{i}]': only tools of type 'function', with a field 'function', are supported.",
            f"tools[{i}].type" if tool.type != "function" else f"tools[{i}].function",
            "invalid_value",
        )
        for i, tool in enumerate(request.tools or ())
        if tool.type != "function" or tool.function is None
    ]
    if problems:
        raise refusal(problems)
    _only_with("function_call", request.function_call, ())
    functions = [tool.function for tool in request.tools or () if tool.function]
    return offer_from(functions, request.tool_choice, request.parallel_tool_calls, inner=".function")


def offer_from(
    given: Sequence[Function], choice: str | Mapping[str, Any] | None, parallel: bool | None, *, inner: str = ""
) -> Offer:
    """The offer of `tools`, whose definitions stand at `tools[i]` followed by `inner`. Raises as `offer_of`."""
    functions = _checked(given, "tools", inner)
    _only_with("tool_choice", None if choice in ("none", "auto") else choice, functions)
    offer = Offer(functions, functions, _default(functions), parallel)
    return _chosen(offer, choice, "tool_choice") if functions else offer


def grammar_of(offer: Offer, form: CallForm | None, answer: Mapping[str, Any] | None) -> str | None:
    """The grammar of an answer that may or must call tools; None where it is free.

    `form` is how the model writes calls, `answer` the schema of an answer that calls nothing (None: any text).
    Raises `ApiError` 400 where it must call and the form is not known.
    """
    if not offer.held and answer is None:
        return None
    if form is None:
        if offer.choice == "required":
            raise ApiError(
                400,
                "Answers of this model cannot be held to calls, as it is not known how it writes them. Leave the "
                "choice of a tool to the model ('auto').",
                param="function_call" if offer.legacy else "tool_choice",
                code="unsupported_value",
            )
        raise ApiError(
            400,
            "Answers of this model cannot be held to calls, as it is not known how it writes them. Leave out 'strict' "
            "and 'response_format', or the tools.",
            param="tools",
            code="unsupported_value",
        )
    schemas = [(function.name, _schema(function, strict_only=offer.choice == "auto")) for function in offer.allowed]
    calls, rules = form.grammar(schemas, several=offer.several)
    if answer is not None and offer.choice == "auto":
        # Two rules that begin with the same brace are not told apart, so objects become one rule.
        made = [form.as_schema(name, schema) for name, schema in schemas]
        objects = [one for one in made if one is not None]
        if objects:
            return answer_grammar({"anyOf": [moved(one, f"#/anyOf/{i}") for i, one in enumerate([answer, *objects])]})
    if offer.choice == "required":
        return f'start: " "? {calls}\n{rules}\n'
    if answer is not None:
        return f'start: " "? ({calls} | answer)\nanswer: {json_rule(answer, _JSON_SPACE)}\n{rules}\n'
    return f"{_free_or(calls, form)}\n{rules}\n"


def answer_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of an answer that is JSON and calls nothing."""
    return f'start: " "? answer\nanswer: {json_rule(schema, _JSON_SPACE)}\n'


def _free_or(calls: str, form: CallForm) -> str:
    """Free text in which a call, once begun, keeps its form. Free text is what holds no beginning of a call."""
    where, mark = form.mark
    escaped = _regex(mark)
    if where == "whole":
        return f'start: FREE | " "? {calls}\nFREE: /(?s:.*)/ & ~/\\s*{escaped}(?s:.*)/'
    begins, first = ("(?s:.*)", "(?s:.*)") if where == "tag" else ("((?s:.*)\\n)?[ ]*", "(?s:.*)\\n[ ]*")
    # Text before a first call must not begin with one itself: the longer match would win.
    lead = f"/{first}{escaped}/ & ~/[ ]*{escaped}(?s:.*)/"
    return (
        f'start: FREE | " "? {calls} | lead {form.after_mark()}\n'
        f"FREE: /(?s:.*)/ & ~/{begins}{escaped}(?s:.*)/\n"
        f"lead[lazy]: LEAD\nLEAD: {lead}"
    )


def _regex(text: str) -> str:
    """A text within a regular expression of a grammar."""
    return re.escape(text).replace("/", "\\/").replace("\n", "\\n")


def _schema(function: Function, *, strict_only: bool) -> Mapping[str, Any]:
    """What arguments are held to: any object where a schema cannot be kept (a strict one was refused before)."""
    schema = function.parameters
    if not schema or (strict_only and not function.strict):
        return _ANYTHING
    if "type" not in schema and "$ref" not in schema and "anyOf" not in schema:
        schema = {**schema, "type": "object"}
    return schema if function.strict or schema_fault(schema) is None else _ANYTHING


def _checked(functions: Sequence[Function], field: str, inner: str) -> tuple[Function, ...]:
    """The functions, with each name once and every strict schema one that can be kept."""
    problems = []
    seen: set[str] = set()
    for i, function in enumerate(functions):
        where = f"{field}[{i}]{inner}"
        if function.name in seen:
            text = f"Invalid value for '{where}.name': '{function.name}' is there twice."
            problems.append(Problem(text, f"{where}.name", "invalid_value"))
        seen.add(function.name)
        fault = schema_fault(function.parameters) if function.strict and function.parameters else None
        if fault is not None:
            text = f"Invalid schema for function '{function.name}': {fault}"
            problems.append(Problem(text, f"{where}.parameters", "invalid_function_parameters"))
    if problems:
        raise refusal(problems)
    return tuple(functions)


def _default(functions: Sequence[Function]) -> Choice:
    return "auto" if functions else "none"


def _only_with(field: str, value: Any, tools: Sequence[Any]) -> None:
    if value is not None and not tools:
        raise _only(field, "functions" if field == "function_call" else "tools")


def _only(field: str, needed: str) -> ApiError:
    return ApiError(400, f"'{field}' is only allowed when '{needed}' are specified.", param=field)


def _chosen(offer: Offer, choice: Any, field: str) -> Offer:
    """The offer, narrowed to what a field `tool_choice` (or `function_call`) chooses."""
    if choice is None:
        return offer
    modes = ("none", "auto") if offer.legacy else ("none", "auto", "required")
    if isinstance(choice, str):
        if choice not in modes:
            raise _bad_choice(field, f"expected one of {', '.join(map(repr, modes))}, or an object")
        return _with(offer, offer.functions, choice)
    if not offer.legacy and choice.get("type") == "allowed_tools":
        return _allowed(offer, choice.get("allowed_tools", choice))
    inner = choice if offer.legacy else choice.get("function")
    if not offer.legacy and choice.get("type") != "function":
        raise _bad_choice(field, "expected an object of type 'function' or 'allowed_tools'")
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise _bad_choice(field, "the function's name is missing")
    return _with(offer, _named(offer, (name,), field), "required")


def _allowed(offer: Offer, choice: Any) -> Offer:
    """`{"mode": …, "tools": […]}`: some of the tools, as if there were no others."""
    mode = choice.get("mode", "auto") if isinstance(choice, Mapping) else None
    tools = choice.get("tools") if isinstance(choice, Mapping) else None
    if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
        raise _bad_choice("tool_choice", "allowed_tools needs a mode ('auto' or 'required') and a list of tools")
    names = []
    for tool in tools:
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(name, str):
            raise _bad_choice("tool_choice", "a tool of allowed_tools has no name")
        names.append(name)
    return _with(offer, _named(offer, names, "tool_choice"), mode)


def _named(offer: Offer, names: Sequence[str], field: str) -> tuple[Function, ...]:
    there = {function.name for function in offer.functions}
    missing = [name for name in names if name not in there]
    if missing:
        where = "functions" if offer.legacy else "tools"
        raise ApiError(
            400, f"Tool choice '{missing[0][:64]}' not found in '{where}' parameter.", param=field, code="invalid_value"
        )
    return tuple(function for function in offer.functions if function.name in names)


def _with(offer: Offer, allowed: tuple[Function, ...], choice: str) -> Offer:
    made: Choice = "required" if choice == "required" else "auto" if choice == "auto" else "none"
    return replace(offer, allowed=allowed, choice=made)


def _bad_choice(field: str, why: str) -> ApiError:
    return ApiError(400, f"Invalid value for '{field}': {why}.", param=field, code="invalid_value")
