"""OpenAI's `fine_tuning.alpha.graders`: checking a grader, and trying it on one answer."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request

from tunesmith.service.context import Service, service_of
from tunesmith.service.grading import check_grader, grade, read_grader, sample_of
from tunesmith.service.grading.shapes import Grader
from tunesmith.service.http import Body
from tunesmith.service.inner import Inner
from tunesmith.service.validation import refusal

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["Graders"])


class ValidateGrader(Body):
    grader: dict[str, Any]


class RunGrader(Body):
    grader: dict[str, Any]
    model_sample: str
    item: dict[str, Any] | None = None
    # Clients before 1.80 send the expected answer here; it is `item.reference_answer` then.
    reference_answer: str | dict[str, Any] | list[Any] | int | float | None = None


@router.post("/validate")
def validate_grader(body: ValidateGrader, service: Annotated[Service, Depends(service_of)]) -> dict[str, Any]:
    """The grader as it was given, or 400 with everything that is wrong with it."""
    _checked(body.grader, service)
    return {"grader": body.grader}


@router.post("/run")
async def run_grader(
    body: RunGrader, request: Request, service: Annotated[Service, Depends(service_of)]
) -> dict[str, Any]:
    """Grade one answer. What goes wrong while grading is told in `metadata.errors`, with a reward of 0."""
    grader = _checked(body.grader, service)
    item = dict(body.item or {})
    if body.reference_answer is not None:
        item.setdefault("reference_answer", body.reference_answer)
    made = await grade(grader, sample_of(body.model_sample), item, _inner(request, service).post)
    return made.answer()


def _checked(grader: dict[str, Any], service: Service) -> Grader:
    problems = check_grader(grader, where="jobs", service=service)
    if problems:
        raise refusal(problems)
    return cast(Grader, read_grader(grader))


def _inner(request: Request, service: Service) -> Inner:
    """The routes that answer, made once for an application."""
    state = request.app.state
    if getattr(state, "inner", None) is None:
        state.inner = Inner(service)
    return cast(Inner, state.inner)
