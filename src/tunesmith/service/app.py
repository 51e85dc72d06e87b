"""The HTTP application: three path roots onto one implementation.

`/v1` and `/openai/v1` speak OpenAI's dialect, `/openai` with a dated api-version Azure's, and the path of Azure's
management API serves deployments. Around the endpoints lie, from the outside: the entrance (request ids, errors, log),
bodies, pages of other sites, the number of requests at a time, keys, rates, repeated requests, slow answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from tunesmith.service import health, refusals
from tunesmith.service.audit import Audit
from tunesmith.service.auth import Keys, Strangers
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
from tunesmith.service.entrance import Entrance
from tunesmith.service.limits import Bodies, Crowd, InFlight, Patience, Rates
from tunesmith.service.logs import log_visit
from tunesmith.service.metrics import Metrics
from tunesmith.service.repeats import Repeats
from tunesmith.service.schema import describe

_OPENAI = (
    files, uploads, jobs, graders, models, stored, chat, completions, responses, embeddings, batches, evals,
)  # fmt: skip

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_app(
    service: Service,
    *,
    lifespan: Lifespan | None = None,
    worker_check: Callable[[], str] = lambda: "none here",
    only_local: bool = False,
) -> FastAPI:
    """The application of one service.

    `lifespan` starts and ends what lives beside it. `worker_check` says `ok` while jobs are worked on by this process,
    `none here` where that is done elsewhere, or what is wrong. `only_local` refuses requests that name another host
    than this machine, which is right where nothing else can reach the port.
    """
    app = FastAPI(
        title="Tunesmith",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan or _nothing,
        redirect_slashes=False,
    )
    in_flight = InFlight()
    app.state.service = service
    app.state.in_flight = in_flight
    app.state.worker_check = worker_check
    app.state.metrics = Metrics(service.store, in_flight, lambda: _engine_state(service))
    refusals.install(app)
    app.include_router(health.router)
    for root in ("/v1", "/openai/v1"):
        for module in _OPENAI:
            app.include_router(module.router, prefix=root)
    app.include_router(data_plane.router, prefix="/openai")
    app.include_router(deployments.router)
    describe(app)
    _surround(app, service, in_flight, only_local)
    return app


def _surround(app: FastAPI, service: Service, in_flight: InFlight, only_local: bool) -> None:
    """The layers, from the innermost."""
    settings = service.settings
    app.add_middleware(Patience, seconds=settings.limits.request_seconds or None)
    app.add_middleware(Repeats, store=service.store)
    app.add_middleware(Rates, limits=settings.limits)
    app.add_middleware(Keys, settings=settings, store=service.store)
    app.add_middleware(Crowd, most=settings.limits.connections, in_flight=in_flight)
    app.add_middleware(Strangers, only_local=only_local)
    app.add_middleware(Bodies, limits=settings.limits)
    app.add_middleware(
        Entrance,
        organization=settings.organization,
        watchers=(app.state.metrics.watch, log_visit),
        recorder=Audit(service.store),
    )


def _engine_state(service: Service) -> Mapping[str, float]:
    return service.engine.state() if service.engine is not None else {}


@asynccontextmanager
async def _nothing(_: FastAPI) -> AsyncIterator[None]:
    yield
