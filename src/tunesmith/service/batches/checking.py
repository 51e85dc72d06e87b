"""The input of a batch: where each request stands in the file, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.service.json_lines import is_blank, read_line

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
AZURE_ENDPOINTS = tuple(one.removeprefix("/v1") for one in ENDPOINTS)
"""What Azure calls the same in its dated API, in batches and in their lines; it takes both."""
MOST_REQUESTS = 50_000
MOST_ERRORS = 100
"""Errors that are told; a last one says how many more there are."""
_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with a line (None: with the file)."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def json(self) -> dict[str, Any]:
        """As a batch shows it."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


@dataclass(frozen=True, slots=True)
class Checked:
    """The byte offsets of the requests, in order; the one model they ask, None where there are several."""

    offsets: tuple[int, ...]
    model: str | None
    errors: tuple[LineError, ...]


def check_input(path: Path, endpoint: str, unknown: Callable[[str], str | None] | None = None) -> Checked:
    """Read the file once. `unknown` says of a model's name why it cannot be asked, None where it can."""
    offsets: list[int] = []
    models: set[str] = set()
    seen: dict[str, int] = {}
    errors: list[LineError] = []
    more, place = 0, 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not is_blank(line):
                if len(offsets) == MOST_REQUESTS:  # the rest need not be read: it is refused anyhow
                    too_many = LineError(
                        "too_many_requests", f"The file may have {MOST_REQUESTS:,} requests, and has more."
                    )
                    return Checked((), None, (too_many,))
                offsets.append(place)
                for error in _line_errors(line, number, endpoint, seen, models):
                    if len(errors) < MOST_ERRORS:
                        errors.append(error)
                    else:
                        more += 1
            place += len(line)
    if more:
        errors.append(LineError("too_many_errors", f"There are {more:,} more errors like these."))
    if not offsets:
        errors.append(LineError("empty_file", "The batch input file is empty."))
    for name in sorted(models):
        problem = unknown(name) if unknown is not None else None
        if problem is not None:
            errors.append(LineError("model_not_found", problem, "body.model"))
    return Checked(tuple(offsets), next(iter(models)) if len(models) == 1 else None, tuple(errors))


def route_of(endpoint: str) -> str:
    """The route that answers the requests of a batch."""
    return f"/v1{endpoint}" if endpoint in AZURE_ENDPOINTS else endpoint


def request_at(path: Path, offset: int) -> dict[str, Any]:
    """The request of a line that `check_input` found."""
    with path.open("rb") as file:
        file.seek(offset)
        found: dict[str, Any] = read_line(file.readline())
    return found


def _line_errors(
    line: bytes, number: int, endpoint: str, seen: dict[str, int], models: set[str]
) -> Iterator[LineError]:
    try:
        found = read_line(line)
    except ValueError as error:
        yield LineError("invalid_json_line", f"This line is not parseable as valid JSON: {error}.", None, number)
        return
    if not isinstance(found, dict):
        yield LineError("invalid_request", "This line is not a JSON object.", None, number)
        return
    missing = [name for name in _FIELDS if name not in found]
    for name in missing:
        yield LineError("missing_required_parameter", f"Missing required parameter: '{name}'.", name, number)
    for name in sorted(found.keys() - set(_FIELDS)):
        yield LineError("unknown_parameter", f"Unknown parameter: '{name[:100]}'.", name[:100], number)
    custom_id = found.get("custom_id")
    if "custom_id" in found:
        if not isinstance(custom_id, str) or not custom_id:
            yield LineError("invalid_custom_id", "'custom_id' must be a string that is not empty.", "custom_id", number)
        elif custom_id in seen:
            yield LineError(
                "duplicate_custom_id",
                f"The custom_id '{custom_id[:100]}' is on line {seen[custom_id]} already.",
                "custom_id",
                number,
            )
        else:
            seen[custom_id] = number
    if "method" in found and found["method"] != "POST":
        yield LineError("invalid_method", "'method' must be 'POST'.", "method", number)
    if "url" in found and found["url"] not in {endpoint, route_of(endpoint)}:
        yield LineError(
            "invalid_url",
            f"The URL provided for this request does not match the batch endpoint '{endpoint}'.",
            "url",
            number,
        )
    if "body" in found:
        yield from _body_errors(found["body"], number, models)


def _body_errors(body: Any, number: int, models: set[str]) -> Iterator[LineError]:
    if not isinstance(body, dict):
        yield LineError("invalid_body", "'body' must be a JSON object.", "body", number)
        return
    model = body.get("model")
    if "model" not in body:
        yield LineError("missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model", number)
    elif not isinstance(model, str):
        yield LineError("invalid_model", "'body.model' must be a string.", "body.model", number)
    else:
        models.add(model)
    if body.get("stream"):
        yield LineError("invalid_stream", "A request of a batch cannot be streamed.", "body.stream", number)
