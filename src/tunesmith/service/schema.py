"""The OpenAPI document: FastAPI's, with the errors that the service really answers in place of FastAPI's own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

ERRORS = {
    "400": "The request is wrong: unknown, missing or impossible fields, all of them in `details`.",
    "401": "No key, or one that is not valid.",
    "403": "The key lacks a scope, or the request comes from another site.",
    "404": "There is no such object.",
    "413": "The body is larger than the server takes.",
    "429": "Too many requests; `Retry-After` says when to come again.",
    "500": "The server failed; the log has the request id.",
    "503": "The server has too many requests in hand, or is shutting down.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}


def describe(app: FastAPI) -> None:
    """Let the application answer `/openapi.json` with this document; it is made once, when first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title=app.title,
        version=app.version,
        summary="Fine-tuning, models and answers, as code written for OpenAI and Azure OpenAI asks for them.",
        routes=app.routes,
    )
    parts = found.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = _ERROR
    parts["securitySchemes"] = _KEYS
    found["security"] = [{}, {"bearer": []}, {"api-key": []}]
    for methods in found.get("paths", {}).values():
        for operation in methods.values():
            _with_errors(operation.setdefault("responses", {}))
    return found


def _with_errors(responses: dict[str, Any]) -> None:
    responses.pop("422", None)
    for status, text in ERRORS.items():
        responses.setdefault(
            status,
            {
                "description": text,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        )
