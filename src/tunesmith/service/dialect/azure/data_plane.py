"""Azure's data plane, under `/openai` with any api-version."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from tunesmith.service.dialect.azure import answers, files, jobs, models
from tunesmith.service.dialect.openai import batches, evals, graders, responses, stored, uploads
from tunesmith.service.errors import ApiError


def versioned(
    api_version: Annotated[str | None, Query(alias="api-version", max_length=64)] = None,
) -> None:
    """Any api-version will do; without one Azure knows no such address."""
    if not api_version:
        raise ApiError(
            404, "Resource not found: the query parameter api-version is missing.", param="api-version", code="404"
        )


_dated = APIRouter(dependencies=[Depends(versioned)])
for part in (files, jobs, models, answers):
    _dated.include_router(part.router)
for same in (uploads, batches, evals, graders, responses, stored):
    # Azure tells these as OpenAI does.
    _dated.include_router(same.router)
for lost in (files, jobs, models):
    # Where clients before 1.50 send these when they were given an `azure_deployment`.
    _dated.include_router(lost.router, prefix="/deployments/{deployment}", include_in_schema=False)

router = APIRouter(tags=["Azure"])
router.include_router(_dated)
for more in (files, jobs):
    router.include_router(more.beyond, prefix="/v1")
