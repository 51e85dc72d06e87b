"""Schemas of items that would keep a server busy for ever, and those that would not."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tunesmith.service.errors import ApiError
from tunesmith.service.evals import schemas
from tunesmith.service.evals.rows import Row, item_problems
from tunesmith.service.evals.schemas import faults, schema_problem

DOUBLING: dict[str, Any] = {
    "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    | {"d40": {"type": "integer"}},
    "properties": {"a": {"$ref": "#/$defs/d0"}},
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"a": {"pattern": "(a+)+$"}}}, "a" * 40 + "!"),
        ({"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {"a" * 40 + "!": 1}),
        (DOUBLING, "no integer"),
    ],
)
def test_what_never_ends_is_ended(schema: dict[str, Any], value: Any) -> None:
    assert schema_problem(schema) is None
    began = time.monotonic()
    item = value if isinstance(value, dict) else {"a": value}
    assert list(faults([item], schema, seconds=1.5)) == [
        (None, "rows cannot be checked within 1.5 s; use simpler patterns and fewer references")
    ]
    assert time.monotonic() - began < 10


def test_references_in_a_circle() -> None:
    (problem,) = item_problems([Row({"a": 1})], {"$ref": "#"}, "data_source.source")
    assert problem.param == "data_source_config.item_schema" and "comes to no end" in problem.message


def test_the_same_is_found_there_as_here() -> None:
    plain: dict[str, Any] = {"properties": {"a": {"type": "string"}, "b": {"minimum": 3}}}
    items = [{"a": "x", "b": 3}, {"a": 1, "b": 2}, {"a": "\ud83d", "b": 9}]
    found = list(faults(items, plain))
    assert found == [(2, "item.a: 1 is not of type 'string'"), (2, "item.b: 2 is less than the minimum of 3")]
    assert list(faults(items, {**plain, "uniqueItems": True})) == found, "in a process of its own"


def test_so_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "_places", threading.BoundedSemaphore(1))
    with schemas._places, pytest.raises(ApiError) as caught:
        list(faults([{}], {"pattern": "a"}))
    assert caught.value.status == 429 and caught.value.headers["Retry-After"] == "5"
    assert list(faults([{}], {"pattern": "a"})) == []
