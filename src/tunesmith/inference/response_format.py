"""The form of an answer as endpoints take it: `response_format` with a JSON schema, and what comes back undone.

Endpoints hold an answer to a JSON object only. Labels, lists and other values are therefore asked for as the one field
of an object, and taken out of it again; an answer that is not such an object stays as it was said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.tasks.types import AnswerForm

_FIELD = "answer"


def response_format(form: AnswerForm) -> dict[str, Any]:
    """The request's field `response_format` for a form.

    `strict` is asked for where the schema allows it: every object closed, with all of its fields required.
    """
    schema = dict(_schema(form))
    return {
        "type": "json_schema",
        "json_schema": {"name": _FIELD, "schema": schema, "strict": _is_strict(schema)},
    }


def form_tokens(form: AnswerForm) -> int:
    """Tokens that a form adds to a request at most: endpoints may count it as part of the prompt."""
    return len(json.dumps(response_format(form)))


def unwrapped(text: str, form: AnswerForm) -> str:
    """The answer without the object it was asked for in; `text` itself where it is something else."""
    if not _is_wrapped(form):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(found, dict) or set(found) != {_FIELD}:
        return text
    value = found[_FIELD]
    if form.separator is not None and isinstance(value, list):
        return form.separator.join(map(str, value)) or form.none or ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _schema(form: AnswerForm) -> Mapping[str, Any]:
    if not _is_wrapped(form):
        assert form.json_schema is not None
        return form.json_schema
    label = {"type": "string", "enum": list(form.choices)}
    several = {"type": "array", "items": label}
    inner = form.json_schema or (label if form.separator is None else several)
    return {"type": "object", "properties": {_FIELD: inner}, "required": [_FIELD], "additionalProperties": False}


def _is_wrapped(form: AnswerForm) -> bool:
    return form.json_schema is None or form.json_schema.get("type") != "object"


def _is_strict(schema: Any) -> bool:
    """Whether every object in a schema is closed and requires all of its fields."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object":
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("required", ())) != set(schema.get("properties", {})):
            return False
    return all(map(_is_strict, schema.values()))
