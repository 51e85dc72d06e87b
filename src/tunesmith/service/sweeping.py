"""What a running server tidies up from time to time: files and uploads whose time is over, bytes that nothing names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tunesmith.service.context import Service
from tunesmith.service.filing import sweep

log = logging.getLogger("tunesmith.service")

EVERY_SECONDS = 600.0


@asynccontextmanager
async def regularly_swept(service: Service, every: float = EVERY_SECONDS) -> AsyncIterator[None]:
    """Sweep at once and then every so many seconds, in a thread, until the block ends."""
    end = asyncio.Event()
    task = asyncio.create_task(_sweep_until(end, service, every), name="sweeping")
    try:
        yield
    finally:
        end.set()
        await task


async def _sweep_until(end: asyncio.Event, service: Service, every: float) -> None:
    while not end.is_set():
        try:
            if removed := await asyncio.to_thread(sweep, service):
                log.info("removed %d blobs that nothing named", removed)
        except Exception:
            # The border of this work: a disk or a database that is away now may be back at the next time.
            log.exception("sweeping failed")
        try:
            await asyncio.wait_for(end.wait(), every)
        except TimeoutError:
            continue
