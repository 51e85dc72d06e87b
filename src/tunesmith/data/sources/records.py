"""Records that are typed already, from tables of Arrow and databases, made into rows of plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from tunesmith.data.findings import FindingLog
from tunesmith.data.types import Row

MAX_DEPTH = 64
"""Deeper nesting is refused, as in JSON."""


class UnreadableError(Exception):
    """A record with a value that is no text, number, list or object; the message says what it is."""

    code = "cell_not_text"


class WrongTextError(UnreadableError):
    """A record with bytes that are no UTF-8."""

    code = "wrong_encoding"


class RestUnreadError(UnreadableError):
    """Stands for all records behind a place that cannot be read."""

    code = "rest_unread"


def unique_names(names: Sequence[Any], log: FindingLog) -> tuple[str, ...]:
    """Column names that are texts, not empty and never the same; what was changed is noted in `log`."""
    made: list[str] = []
    for number, given in enumerate(names, 1):
        name = str(given)
        if not name.strip():
            name = f"column_{number}"
            log.add("unnamed_column", 1, f"column {number} is called {name!r} here")
        if name in made:
            fresh = next(f"{name}_{n}" for n in range(2, len(names) + 2) if f"{name}_{n}" not in made)
            log.add("duplicate_column", 1, f"the second {name!r} is called {fresh!r} here", field=name)
            name = fresh
        made.append(name)
    return tuple(made)


def rows_of(records: Iterable[Mapping[str, Any] | UnreadableError], log: FindingLog) -> Iterator[Row]:
    """Rows by number; records that cannot be read are left out and noted."""
    for number, record in enumerate(records, 1):
        try:
            if isinstance(record, UnreadableError):
                raise record
            values = {name: plain_value(value) for name, value in record.items()}
        except UnreadableError as error:
            log.leave_out(error.code, number, str(error))
        else:
            yield Row(values, number, log.source)


def plain_value(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it: dates in ISO 8601, decimals as text, bytes as UTF-8, not-a-number as null.

    Inside a cell, keys whose value is null are left out: Arrow fills them in where another row has the key. Raises
    `UnreadableError` for everything else.
    """
    match value:
        case None | bool() | int():
            return value
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise WrongTextError("a text that is not UTF-8") from error
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal() | UUID():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes() | bytearray() | memoryview():
            try:
                return bytes(value).decode()
            except UnicodeDecodeError as error:
                raise UnreadableError("binary data, such as an image") from error
    if depth > MAX_DEPTH:
        raise UnreadableError(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {str(k): plain_value(v, depth + 1) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [plain_value(item, depth + 1) for item in value]
    raise UnreadableError(f"a value of the type {type(value).__name__}")
