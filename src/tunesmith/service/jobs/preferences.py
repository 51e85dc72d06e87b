"""Jobs of methods that are not offered here (preferences, reinforcement): looked at in full, and then refused.

Whoever moves here learns at once whether rows and grader would do, and is never told that a job runs which cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.jobs.request import JobRequest
from tunesmith.service.jobs.rules import MOST_LINES, check_files, readable
from tunesmith.service.store.nouns import File


def refuse_method(service: Service, request: JobRequest, files: Mapping[str, File]) -> None:
    """Raise `ApiError` 400: for what is wrong with rows and grader, or where nothing is, for the method itself."""
    with readable([service.blobs.path(str(file.blob)) for file in files.values()]) as paths:
        places = dict(zip(files, paths, strict=True))
        problems = [*_rows(request, places), *_grader(service, request)]
        problems = problems or _absent(request, places)
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


def _rows(request: JobRequest, files: Mapping[str, Path]) -> list[dict[str, Any]]:
    checked = check_files(
        files["training_file"],
        files.get("validation_file"),
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


def _absent(request: JobRequest, files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """What the grader asks of rows that do not have it; rows and grader are right by themselves."""
    if request.method is None or request.method.reinforcement is None:
        return []
    from tunesmith.data.reading import read_rows
    from tunesmith.service.grading import Grader, all_texts, read_grader
    from tunesmith.service.grading.templates import TemplateError, look_up, paths_of, show_path

    grader = cast(Grader, read_grader(request.method.reinforcement.grader))
    wanted = {path: None for text in all_texts(grader) for path in paths_of(text) if path[0] == "item"}
    problems = []
    for field, file in files.items():
        rows = read_rows(file).rows
        for path in wanted:
            lines = []
            for row in rows:
                try:
                    look_up(path, {"item": row.values})
                except TemplateError:
                    lines.append(row.line)
            if lines:
                message = (
                    f"The grader asks for '{show_path(path)}', which {len(lines):,} of the {len(rows):,} rows of "
                    f"{getattr(request, field)} do not have; the first is line {lines[0]:,}."
                )
                told = {"message": message, "param": field, "code": f"invalid_{field}", "lines": lines[:MOST_LINES]}
                problems.append(told)
    return problems
