"""Lines of JSON files, read as strictly as the bodies of requests: what is taken in can be stored and sent again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tunesmith.service.errors import ApiError
from tunesmith.service.json_check import check_json

_MARK = b"\xef\xbb\xbf"


def is_blank(line: bytes) -> bool:
    """Whether nothing stands on it, apart from a byte order mark."""
    return not line.removeprefix(_MARK).strip()


def read_line(line: bytes) -> Any:
    """The value on a line. Raises `ValueError` that says why there is none: NaN, half a surrogate pair, too deep, …"""
    data = line.removeprefix(_MARK)
    try:
        check_json(data)
    except ApiError as error:
        raise ValueError(error.message.partition(": ")[2].rstrip(".")) from None
    return json.loads(data)


def json_line(value: Any) -> bytes:
    """One line of a file. Texts stay readable where they can be written at all."""
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a model may have written half of a surrogate pair
        return json.dumps(value).encode() + b"\n"


def json_lines(values: Iterable[Any]) -> bytes:
    """A whole file of them."""
    return b"".join(map(json_line, values))
