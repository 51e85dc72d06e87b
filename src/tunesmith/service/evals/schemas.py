"""JSON schemas of items: whether one is a schema, and where items do not keep it.

A schema is a client's, and can be made so that checking a small row takes for ever: a pattern that backtracks,
references that multiply. Where that could be, or there are many rows, they are checked in a process of their own, for
`SECONDS` and in `MEMORY_BYTES`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.service.errors import ApiError

SECONDS = 30.0
MEMORY_BYTES = 2 << 30
_places = threading.BoundedSemaphore(4)
"""Of such processes: the threads that wait for them are those that answer everybody."""
_REFERENCES = ("$ref", "$dynamicRef")
_COSTLY = frozenset({*_REFERENCES, "pattern", "patternProperties", "uniqueItems"})
_FEW = 200
"""Rows that are checked on the spot where nothing in the schema is costly."""

Fault = tuple[int | None, str]
"""Number of the row, from 1, and what is wrong with it; None: with the schema."""


def schema_problem(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with the schema of items itself."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        at = ".".join(map(str, error.absolute_path))
        return f"it is no JSON schema: {at + ': ' if at else ''}{error.message[:200]}"
    except RecursionError:
        return "it is nested too deeply"
    references = (value for name, value in _fields(schema) if name in _REFERENCES and isinstance(value, str))
    outside = next((one for one in references if not one.startswith("#")), None)
    # Never fetched: a schema must not make this server ask other machines.
    return f"the reference {outside[:100]!r} leads outside the schema" if outside is not None else None


def faults(items: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], seconds: float = SECONDS) -> Iterator[Fault]:
    """Where items do not keep a schema that `schema_problem` found nothing wrong with, row by row.

    Raises `ApiError` 429 where too many are being checked.
    """
    if len(items) <= _FEW and not any(name in _COSTLY for name, _ in _fields(schema)):
        yield from _faults(items, schema)
        return
    if not _places.acquire(blocking=False):
        raise ApiError(
            429, "The server checks the rows of other runs. Please try again in 5 s.", "requests",
            code="rate_limit_exceeded", headers={"Retry-After": "5"},
        )  # fmt: skip
    try:
        told = _faults_apart(items, schema, seconds)
    finally:
        _places.release()
    if told is None:
        yield None, f"rows cannot be checked within {seconds:g} s; use simpler patterns and fewer references"
        return
    yield from ((number, text) for number, text in told)


def _faults_apart(items: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], seconds: float) -> list[Any] | None:
    """The same from a process of its own; None where it came to no end."""
    command = [sys.executable, "-m", __name__]
    asked = json.dumps([items, schema]).encode()
    try:
        done = subprocess.run(command, input=asked, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return None
    found: list[Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return found


def _faults(items: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> Iterator[Fault]:
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    validator = Draft202012Validator(schema, registry=Registry())
    for number, item in enumerate(items, 1):
        try:
            errors = sorted(validator.iter_errors(item), key=lambda error: list(map(str, error.absolute_path)))
        except Unresolvable as lost:
            yield None, f"a reference leads nowhere: {str(lost)[:200]}"
            return
        except RecursionError:
            yield None, f"following its references in row {number} comes to no end"
            return
        for error in errors:
            at = "".join(f".{step}" for step in error.absolute_path)
            yield number, f"item{at}: {error.message[:200]}"


def _fields(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every field of every object in it."""
    if isinstance(schema, Mapping):
        for name, value in schema.items():
            yield name, value
            yield from _fields(value)
    elif isinstance(schema, list):
        for one in schema:
            yield from _fields(one)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(json.dumps(list(_faults(*json.load(sys.stdin)))))
