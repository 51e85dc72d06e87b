"""Jobs of methods that are not offered here (preferences, reinforcement): looked at in full, and then refused.

Whoever moves here learns at once whether rows and grader would do, and is never told that a job runs which cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.jobs.request import JobRequest
from tunesmith.service.jobs.rules import check_files, readable
from tunesmith.service.store.nouns import File


def refuse_method(service: Service, request: JobRequest, files: Mapping[str, File]) -> None:
    """Raise `ApiError` 400: for what is wrong with rows and grader, or where nothing is, for the method itself."""
    problems = [*_rows(service, request, files), *_grader(service, request)]
    what = "rows and grader" if request.method_type == "reinforcement" else "rows"
    refusal = {
        "message": f"Unsupported value: 'method.type' does not support '{request.method_type}' with this model. "
        f"Supported values are: 'supervised'.{'' if problems else f' The {what} were checked and are valid.'}",
        "param": "method.type",
        "code": "unsupported_value",
    }
    every = [*problems, refusal]
    first = every[0]
    raise ApiError(
        400,
        first["message"],
        param=first["param"],
        code=first["code"],
        details=tuple(every) if len(every) > 1 else (),
    )


def _rows(service: Service, request: JobRequest, files: Mapping[str, File]) -> list[dict[str, Any]]:
    named = [files[field] for field in ("training_file", "validation_file") if field in files]
    with readable([service.blobs.path(str(file.blob)) for file in named]) as paths:
        checked = check_files(
            paths[0],
            paths[1] if len(paths) > 1 else None,
            training_id=request.training_file,
            validation_id=request.validation_file,
            method=request.method_type,
        )
    return [fault.body() for fault in checked.faults]


def _grader(service: Service, request: JobRequest) -> list[dict[str, Any]]:
    if request.method is None or request.method.reinforcement is None:
        return []
    from tunesmith.service.grading import check_grader

    problems = check_grader(
        request.method.reinforcement.grader, where="jobs", service=service, param="method.reinforcement.grader"
    )
    return [{"message": one.message, "param": one.param, "code": one.code} for one in problems]
