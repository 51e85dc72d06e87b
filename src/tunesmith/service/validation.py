"""A request that does not fit an endpoint, told as OpenAI tells it: one 400 with the first problem as its message and
all of them as `details`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.service.errors import ApiError

MOST = 50
"""Problems that are told of one request."""

_WANTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of a usual size",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "a string",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "list_type": "an array",
    "tuple_type": "an array",
    "dict_type": "an object",
    "mapping_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
    "none_required": "null",
    "bytes_type": "a file",
}
_SIZES = {
    "too_long": ("at most", "max_length", "items"),
    "too_short": ("at least", "min_length", "items"),
    "string_too_long": ("at most", "max_length", "characters"),
    "string_too_short": ("at least", "min_length", "characters"),
}
_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request."""

    message: str
    param: str | None
    code: str | None


def refusal(problems: Sequence[Problem]) -> ApiError:
    """400 with the first problem as its message."""
    first = problems[0]
    details = (
        tuple({"message": one.message, "param": one.param, "code": one.code} for one in problems[:MOST])
        if len(problems) > 1
        else ()
    )
    return ApiError(400, first.message, param=first.param, code=first.code, details=details)


def problems_of(errors: Iterable[Mapping[str, Any]], body: Any = None, content_type: str = "") -> list[Problem]:
    """Pydantic's errors (`RequestValidationError.errors()`) as problems; several about one value become one.

    `body` is what was parsed: it tells the fields in an error's place from the branches of a union.
    """
    grouped: dict[str | None, list[Mapping[str, Any]]] = {}
    for error in errors:
        if error["type"] == "json_invalid" or tuple(error["loc"]) == ("body",):
            # No field can be right or wrong while there is no object.
            return [_no_object(error, body, content_type)]
        grouped.setdefault(_param(error["loc"], body, error["type"]), []).append(error)
    return [_problem(param, found) for param, found in grouped.items()]


def _no_object(error: Mapping[str, Any], body: Any, content_type: str) -> Problem:
    begin = "We could not parse the JSON body of your request"
    if error["type"] == "json_invalid":
        return Problem(f"{begin}: it is not valid JSON.", None, None)
    if body is None or error["type"] == "missing":
        return Problem(f"{begin}: it is empty, and this endpoint expects a JSON object.", None, None)
    if isinstance(body, bytes):
        named = f"{content_type.split(';')[0].strip()[:80]!r}" if content_type else "none"
        return Problem(
            f"Unsupported content type: {named}. This endpoint takes 'application/json'; send the header "
            "'Content-Type: application/json'.",
            None,
            "unsupported_content_type",
        )
    return Problem(f"{begin}: expected an object, but got {kind_of(body)} instead.", None, "invalid_type")


def _param(place: Sequence[Any], body: Any, kind: str) -> str | None:
    """`messages[0].content` of Pydantic's `("body", "messages", 0, "content", "str")`."""
    steps = list(place)
    if steps and steps[0] in ("query", "path", "header", "cookie"):
        return ".".join(str(step) for step in steps[1:]) or None
    value, name = body, ""
    last = len(steps) - 1
    for i, step in enumerate(steps[1:] if steps and steps[0] == "body" else steps, start=1):
        absent = kind == "missing" and i == last
        if isinstance(step, int) and isinstance(value, list | tuple) and 0 <= step < len(value):
            name += f"[{step}]"
            value = value[step]
        elif isinstance(step, str) and _holds(value, step):
            name += f".{step}" if name else step
            value = value[step]
        elif isinstance(step, str) and absent:
            name += f".{step}" if name else step
    return name or None


def _holds(value: Any, key: str) -> bool:
    try:
        return not isinstance(value, list | tuple | str | bytes) and value is not None and key in value
    except TypeError:
        return False


def _problem(param: str | None, errors: Sequence[Mapping[str, Any]]) -> Problem:
    """All errors about one value as one problem."""
    wanted = [_WANTED[error["type"]] for error in errors if error["type"] in _WANTED]
    if len(wanted) == len(errors):
        expected = " or ".join(dict.fromkeys(wanted))
        given = kind_of(errors[0]["input"])
        return Problem(
            f"Invalid type for {param!r}: expected {expected}, but got {given} instead.", param, "invalid_type"
        )
    either = [_expected(error) for error in errors]
    if len(either) > 1 and all(either):
        told = " or ".join(dict.fromkeys(filter(None, either)))
        return Problem(
            f"Invalid value for {param!r}: expected {told}, but got {shown(errors[0]['input'])} instead.",
            param,
            "invalid_value",
        )
    # Of a union's branches, the one whose type fitted says the most.
    error = next(error for error in errors if error["type"] not in _WANTED)
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "extra_forbidden":
        return Problem(f"Unknown parameter: {param!r}.", param, "unknown_parameter")
    if kind == "missing":
        return Problem(f"Missing required parameter: {param!r}.", param, "missing_required_parameter")
    return Problem(f"Invalid value for {param!r}: {_reason(kind, context, error)}.", param, "invalid_value")


def _expected(error: Mapping[str, Any]) -> str | None:
    """What one branch of a union of plain values takes; None where it is no such branch."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind in _BOUNDS:
        return _bound(kind, context)
    return str(context["expected"]) if kind == "literal_error" else _WANTED.get(kind)


def _bound(kind: str, context: Mapping[str, Any]) -> str:
    sign, key = _BOUNDS[kind]
    bound = context[key]
    return f"a value {sign} {f'{bound:g}' if isinstance(bound, float) else bound}"


def _reason(kind: str, context: Mapping[str, Any], error: Mapping[str, Any]) -> str:
    given = error.get("input")
    if kind in _BOUNDS:
        return f"expected {_bound(kind, context)}, but got {shown(given)} instead"
    if kind in _SIZES:
        most, key, unit = _SIZES[kind]
        actual = context.get("actual_length")
        if actual is None:
            actual = len(given) if isinstance(given, str | list | dict) else "another number"
        return f"expected {most} {context[key]} {unit}, but got {actual} instead"
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        expected = context.get("expected") or context.get("expected_tags")
        got = context.get("tag") if kind == "union_tag_invalid" else given
        return f"expected {expected}, but got {shown(got)} instead"
    if kind == "union_tag_not_found":
        return f"{context.get('discriminator')} is missing, which says what kind of object it is"
    if kind == "value_error":
        return str(context.get("error", error["msg"])).rstrip(".")
    text = str(error["msg"]).rstrip(".")
    return text[:1].lower() + text[1:]


def kind_of(value: Any) -> str:
    """What JSON calls a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    for kind, name in ((int, "an integer"), (float, "a number"), (str, "a string"), (list, "an array")):
        if isinstance(value, kind):
            return name
    return "an object" if isinstance(value, Mapping) else "something else"


def shown(value: Any) -> str:
    """A value as a message shows it: JSON, short."""
    if isinstance(value, str | int | float | bool | None):
        try:
            text = json.dumps(value, ensure_ascii=False)
        except ValueError:  # a number with thousands of digits
            return "a number that is far too long"
        return text if len(text) <= 60 else text[:57] + "…"
    return kind_of(value)
