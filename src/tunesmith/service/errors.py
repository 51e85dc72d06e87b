"""What the service answers when something is wrong: a status and OpenAI's error body, of which Azure's is a superset.

A user's mistake is 400, 401, 403, 404, 413 or 429, and never 409, 422 or 5xx: the official client repeats a request
that was answered so, twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class ApiError(Exception):
    """An answer that is a refusal. `details` are further problems of the same request (Azure's field of that name; at
    OpenAI an extra field), each with `message`, `param`, `code`.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    details: tuple[Mapping[str, Any], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        if self.details:
            error["details"] = [dict(one) for one in self.details]
        return {"error": error}


def not_found(what: str, name: str, *, param: str | None = "id", code: str | None = None) -> ApiError:
    """404 in OpenAI's words: `No such File object: file-abc`."""
    return ApiError(404, f"No such {what}: {name}", param=param, code=code)


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400 for a value that cannot be."""
    return ApiError(400, message, param=param, code=code)
