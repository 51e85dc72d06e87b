"""JSON as the strict grammar knows it, and no more of it than a request or a line can need."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from tunesmith.service.errors import ApiError, invalid

DEEPEST = 100
"""Most levels of nesting."""
MOST_VALUES = 200_000
"""Most members of objects and items of lists, all together: each of them can be wrong, and would have to be told."""
ON_THE_LOOP = 200_000
"""Bytes that are parsed without leaving the event loop."""


async def check_json_aside(data: bytes) -> None:
    """As `check_json`; what is long is read in a thread."""
    if len(data) <= ON_THE_LOOP:
        check_json(data)
    else:
        await asyncio.get_running_loop().run_in_executor(None, check_json, data)


def check_json(data: bytes) -> None:
    """Raises `ApiError` 400 for JSON that the strict grammar does not know, or that would break what comes behind: NaN
    and infinities, numbers of thousands of digits, half a surrogate pair, nesting beyond `DEEPEST`, more than
    `MOST_VALUES`, bytes that are no UTF-8.
    """
    try:
        parsed = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise _unparsable(f"it is nested deeper than {DEEPEST} levels") from None
    except UnicodeDecodeError as error:
        raise _unparsable(f"it is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _unparsable(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise _unparsable("a number in it is too long" if "digits" in str(error) else str(error)) from None
    opened = data.count(b"[") + data.count(b"{")
    if opened > DEEPEST or opened + data.count(b",") > MOST_VALUES:
        _check_shape(parsed)
    if b"\\u" in data:
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _unparsable("a text in it holds half of a surrogate pair (\\ud800 to \\udfff alone)") from None


def _check_shape(value: Any) -> None:
    """Depth and number of values, without recursion."""
    values, waiting = 0, [(value, 1)]
    while waiting:
        one, level = waiting.pop()
        if not isinstance(one, dict | list):
            continue
        if level > DEEPEST:
            raise _unparsable(f"it is nested deeper than {DEEPEST} levels")
        values += len(one)
        if values > MOST_VALUES:
            raise _unparsable(f"it has more than {MOST_VALUES:,} values")
        waiting.extend((inner, level + 1) for inner in (one.values() if isinstance(one, dict) else one))


def _unparsable(why: str) -> ApiError:
    return invalid(f"We could not parse the JSON body of your request: {why}.")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number in it is too large")
    return value
