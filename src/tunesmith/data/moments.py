"""The time of a row: a date, a date with time, or a number, as one number to sort by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tunesmith.data.findings import shortened
from tunesmith.data.types import Example
from tunesmith.errors import DataError

_FORMATS = ("%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S", "%Y/%m/%d", "%Y/%m/%d %H:%M", "%Y/%m/%d %H:%M:%S")


def moments(rows: Sequence[Example], column: str) -> dict[str, float]:
    """Seconds since 1970 (dates; without a zone they count as UTC) or the numbers themselves, by the rows' ids.

    Raises `DataError` naming the lines of rows without a time, and where dates and numbers are mixed.
    """
    if not any(column in row.values for row in rows):
        there = dict.fromkeys(name for row in rows for name in row.values)
        raise DataError(
            f"no row has a column {column!r} with times",
            where="data.split.time",
            expected=f"a column among: {', '.join(there)}",
        )
    made: dict[str, float] = {}
    dates: set[bool] = set()
    bad: list[Example] = []
    for row in rows:
        moment = _moment(row.values.get(column))
        if moment is None:
            bad.append(row)
        else:
            made[row.id] = moment[0]
            dates.add(moment[1])
    if bad:
        value = str(bad[0].values.get(column))[:40]
        raise DataError(
            f"{len(bad):,} rows have no time in {column!r}: lines {shortened([row.line for row in bad])}, such as "
            f"{value!r}",
            where=bad[0].source,
            expected="a date such as 2026-05-31 or 31.05.2026, with or without a time, or a number",
            fix="correct these rows, or choose another data.split.method",
        )
    if len(dates) > 1:
        raise DataError(
            f"{column!r} holds dates in some rows and numbers in others", where="data.split.time", expected="one kind"
        )
    return made


def _moment(value: Any) -> tuple[float, bool] | None:
    """The number to sort by, and whether it is a date."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return (float(value), False) if math.isfinite(value) else None
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        when = _date(text)
        return None if when is None else (when.replace(tzinfo=when.tzinfo or UTC).timestamp(), True)
    return (number, False) if math.isfinite(number) else None


def _date(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    for form in _FORMATS:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            continue
    return None
