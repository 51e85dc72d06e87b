"""What every request can reach: settings, store, blobs, models, the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from fastapi import Request

from tunesmith.service.bell import Bell
from tunesmith.service.ids import Flavour
from tunesmith.service.settings import ServeSettings
from tunesmith.service.store.interface import Blobs, Store

if TYPE_CHECKING:
    from tunesmith.inference.serving.types import ServingEngine
    from tunesmith.service.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Service:
    """One server's parts. `now` is seconds since 1970, whole. `engine` is None where nothing is to be answered. `bell`
    is rung when there is something for the work in the background.
    """

    settings: ServeSettings
    store: Store
    blobs: Blobs
    catalogue: Catalogue
    engine: ServingEngine | None
    now: Callable[[], int] = lambda: int(time.time())
    bell: Bell = field(default_factory=Bell)


def service_of(request: Request) -> Service:
    """The service of a request: `service: Annotated[Service, Depends(service_of)]`."""
    return cast(Service, request.app.state.service)


def flavour_of(request: Request) -> Flavour:
    """Which dialect a request speaks: `azure` under `/openai/…` with a dated api-version, else `openai`."""
    return cast(Flavour, getattr(request.state, "flavour", "openai"))
