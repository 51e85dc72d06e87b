"""Refusals in Azure's shape: a superset of OpenAI's body, with Azure's codes, `target`, `details` and `innererror`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tunesmith.service.errors import ApiError

_BY_STATUS: Mapping[int, str] = MappingProxyType(
    {
        400: "invalidPayload",
        401: "Unauthorized",
        403: "forbidden",
        404: "notFound",
        405: "methodNotAllowed",
        413: "invalidPayload",
        429: "tooManyRequests",
        500: "internalFailure",
        503: "serviceUnavailable",
    }
)
_BY_CODE: Mapping[str, str] = MappingProxyType(
    {
        "exceeded_quota": "quotaExceeded",
        "insufficient_quota": "quotaExceeded",
        "model_in_use": "conflict",
        "invalid_job_status": "unexpectedEntityState",
        "content_filter": "contentFilter",
    }
)
_OF_JOBS: Mapping[str, str] = MappingProxyType(
    {
        "invalid_training_file": "jsonlValidationFailed",
        "invalid_validation_file": "jsonlValidationFailed",
        "invalid_n_examples": "jsonlValidationFailed",
        "invalid_file_format": "jsonlValidationFailed",
        "exceeded_quota": "quotaExceeded",
    }
)
_SHARED = frozenset({"context_length_exceeded"})
"""Codes that are the same in both dialects."""


def azure_code(error: ApiError) -> str:
    """Azure's code for a refusal; those that are Azure's already (they have capitals, or are a number) stay."""
    code = error.code
    if code is None:
        return _BY_STATUS.get(error.status, "unexpectedFailure")
    if code in _SHARED or code != code.lower() or code.isdigit():
        return code
    return _BY_CODE.get(code) or _BY_STATUS.get(error.status, code)


def azure_body(error: ApiError) -> dict[str, Any]:
    """The JSON of a refusal. OpenAI's own fields stay in it: the official client reads them for both."""
    code = azure_code(error)
    body: dict[str, Any] = {
        "code": code,
        "message": error.message,
        "target": error.param,
        "details": [_detail(one, code) for one in error.details],
        "param": error.param,
        "type": error.kind,
    }
    if error.code is not None and error.code != code:
        body["innererror"] = {"code": error.code}
    return {"error": body}


def job_error(error: Mapping[str, Any]) -> dict[str, Any]:
    """Why a job failed, as `error` of the job."""
    code = error.get("code")
    told = _OF_JOBS.get(str(code), code)
    inner = {"innererror": {"code": code}} if told != code else {}
    return {**error, "code": told, "target": error.get("param"), **inner}


def _detail(one: Mapping[str, Any], code: str) -> dict[str, Any]:
    """A further problem; what else is known of it (a file's line, what mends it) stays beside Azure's fields."""
    known = {"code": one.get("code") or code, "message": one.get("message"), "target": one.get("param")}
    return known | {name: value for name, value in one.items() if name not in ("code", "message", "param")}
