"""The HTTP application: three path roots onto one implementation.

`/v1` and `/openai/v1` speak OpenAI's dialect, `/openai` with a dated api-version Azure's, and the path of Azure's
management API serves deployments.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tunesmith.service.context import Service
from tunesmith.service.dialect.azure import data_plane, deployments
from tunesmith.service.dialect.openai import (
    batches,
    chat,
    completions,
    embeddings,
    evals,
    files,
    graders,
    jobs,
    models,
    responses,
    stored,
    uploads,
)
from tunesmith.service.errors import ApiError

_OPENAI = (
    files, uploads, jobs, graders, models, stored, chat, completions, responses, embeddings, batches, evals,
)  # fmt: skip


def make_app(service: Service) -> FastAPI:
    """The application of one service."""
    app = FastAPI(title="Tunesmith")
    app.state.service = service
    app.add_exception_handler(ApiError, _refuse)  # type: ignore[arg-type]
    for root in ("/v1", "/openai/v1"):
        for module in _OPENAI:
            app.include_router(module.router, prefix=root)
    app.include_router(data_plane.router, prefix="/openai")
    app.include_router(deployments.router)
    return app


async def _refuse(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=dict(error.headers))
