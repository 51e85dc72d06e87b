"""Every error as an answer: OpenAI's body, or Azure's, which has more fields. Nothing of the machine is in it."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.inference.serving.types import OverloadedError
from tunesmith.service.dialect.azure.errors import azure_body
from tunesmith.service.errors import ApiError
from tunesmith.service.http import unknown_cursor
from tunesmith.service.ids import Flavour
from tunesmith.service.store.interface import UnknownCursorError
from tunesmith.service.validation import problems_of, refusal

log = logging.getLogger("tunesmith.service")

NO_RETRY = {"x-should-retry": "false"}
"""Tells the official client that the same request would fail the same way."""

_USERS_MISTAKES = (RecipeError, DataError)


def install(app: FastAPI) -> None:
    """Answer everything that an endpoint or the router raises."""
    for kind in (ApiError, TunesmithError, UnknownCursorError, OverloadedError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    """The answer; what is our own mistake goes to the log as well."""
    request_id = getattr(request.state, "request_id", "")
    found = as_api_error(error, request)
    if found.status >= 500 and not isinstance(error, ApiError):
        log.error("request failed", exc_info=error, extra={"request_id": request_id, "path": request.url.path[:200]})
    return answer_to(found, getattr(request.state, "flavour", "openai"), request_id)


def answer_to(error: Exception, flavour: Flavour, request_id: str) -> JSONResponse:
    """The response for any error."""
    refused = as_api_error(error)
    body = body_of(refused, flavour)
    if refused.status >= 500 and request_id:
        body["error"]["message"] += f" (Request {request_id})"
    return JSONResponse(body, status_code=refused.status, headers=dict(refused.headers))


def body_of(refused: ApiError, flavour: Flavour) -> dict[str, Any]:
    """A refusal's JSON, as the dialect has it."""
    return azure_body(refused) if flavour == "azure" else refused.body()


def as_api_error(error: BaseException, request: Request | None = None) -> ApiError:
    """Any error as a refusal. What no rule knows is 500 without a word of what it said."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        content_type = request.headers.get("content-type", "") if request is not None else ""
        return refusal(problems_of(error.errors(), error.body, content_type))
    if isinstance(error, UnknownCursorError):
        return unknown_cursor(request.query_params.get("after") if request is not None else None)
    if isinstance(error, OverloadedError):
        return overloaded(error.retry_after)
    if isinstance(error, OperationalError):
        return _of_the_database(error)
    if isinstance(error, _USERS_MISTAKES):
        return ApiError(400, _sentences(error))
    if isinstance(error, HTTPException):
        return _of_http(error, request)
    return ApiError(
        500, "The server had an error while processing your request.", kind="server_error", headers=NO_RETRY
    )


def _of_the_database(error: OperationalError) -> ApiError:
    """503 where the database is full, locked or away: nothing of the request was kept."""
    said = str(error.orig).lower()
    if "disk is full" in said or "no space left" in said:
        message = "The server's disk is full: nothing more can be kept until whoever runs it has made room."
        return ApiError(503, message, kind="server_error", code="exceeded_quota", headers=NO_RETRY)
    message = "The server's database cannot be used at the moment. Try again shortly."
    return ApiError(503, message, kind="server_error", headers={"retry-after": "5"})


def overloaded(retry_after: int) -> ApiError:
    """429 where more is asked than can be answered now."""
    return ApiError(
        429,
        f"The server has more requests than it can answer. Try again in {retry_after} seconds.",
        kind="requests",
        code="rate_limit_exceeded",
        headers={"retry-after": str(retry_after)},
    )


def _sentences(error: TunesmithError) -> str:
    """What is wrong, what was expected, what to do. Where is left out: it may be a path of this machine."""
    parts = [error.what.rstrip(".")]
    if error.expected:
        parts.append(f"Expected {error.expected.rstrip('.')}")
    if error.fix:
        parts.append(f"To do: {error.fix.rstrip('.')}")
    return ". ".join(parts) + "."


def _of_http(error: HTTPException, request: Request | None) -> ApiError:
    """What the router or the parser of a body refuses."""
    cause = error.__cause__
    if isinstance(cause, ApiError):
        return cause  # a layer around the body refused it while it was being read
    asked = f"{request.method} {request.url.path[:200]}" if request is not None else ""
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ApiError(404, f"Invalid URL ({asked})", headers=headers)
    if error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow")
        hint = f" This URL takes {allowed}." if allowed else ""
        return ApiError(
            405, f"Not allowed to {asked.replace(' ', ' on ', 1)}.{hint}", code="method_not_allowed", headers=headers
        )
    if error.status_code == 400:
        return ApiError(400, _parsing(request, error), headers=headers)
    return ApiError(error.status_code, str(error.detail), headers=headers)


def _parsing(request: Request | None, error: HTTPException) -> str:
    """Why a body could not be read, by the kind of body."""
    kind = request.headers.get("content-type", "") if request is not None else ""
    if kind.startswith("multipart/form-data"):
        detail = str(error.detail) if error.__cause__ is None else "it is cut off or malformed"
        return f"We could not parse the multipart form of your request: {detail.rstrip('.')}."
    return "We could not parse the body of your request."
