"""Whether the server lives, whether it can do its work, and its figures: for balancers, Kubernetes and Prometheus."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from tunesmith.service.context import Service, service_of
from tunesmith.service.metrics import CONTENT_TYPE, Metrics
from tunesmith.service.store.nouns import Job

router = APIRouter(tags=["operations"])

Check = Callable[[], str]
"""Says `ok` or what is wrong, in a word or two: anybody may read it."""


def store_check(service: Service) -> str:
    """Whether the store answers."""
    try:
        service.store.count(Job, {"status": "running"})
    except Exception:
        # Any database's any error means the same here: the store does not answer.
        return "does not answer"
    return "ok"


def disk_check(service: Service) -> str:
    """Whether there is more space than is kept free."""
    try:
        free = shutil.disk_usage(service.settings.home).free
    except OSError:
        return "cannot be looked at"
    return "ok" if free > service.settings.limits.free_disk else "full"


def engine_check(service: Service) -> str:
    """Whether there is something that answers."""
    return "ok" if service.engine is not None else "none"


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process lives and answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "Something is missing, or the server is shutting down."}})
def readyz(request: Request, service: Annotated[Service, Depends(service_of)]) -> JSONResponse:
    """Whether new work should be sent here: store, disk, engine, worker, and no shutdown under way."""
    checks: dict[str, str] = {
        "store": store_check(service),
        "disk": disk_check(service),
        "engine": engine_check(service),
        "worker": request.app.state.worker_check(),
        "shutdown": "under way" if request.app.state.in_flight.draining else "ok",
    }
    ready = all(found in ("ok", "none here") for found in checks.values())
    body: dict[str, Any] = {"status": "ready" if ready else "not ready", "checks": checks}
    return JSONResponse(body, status_code=200 if ready else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """Figures in Prometheus' text format."""
    figures: Metrics = request.app.state.metrics
    return Response(figures.text(), media_type=CONTENT_TYPE)
