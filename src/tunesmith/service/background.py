"""Runs of evals and batches, done by the server beside its requests.

The store says what there is to do, so nothing is lost with the process: a run or batch that was broken off is taken up
by whichever server finds it without a living lease. While it is in work, its lease is renewed and its record watched,
so that a cancellation ends it within a moment.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tunesmith.service.batches.running import RUNNING, run_batch, settle_batch
from tunesmith.service.context import Service
from tunesmith.service.evals.operations import LIVE
from tunesmith.service.evals.running import run_eval, settle_run
from tunesmith.service.gate import Gate
from tunesmith.service.inner import Inner, Post, Reply
from tunesmith.service.store.nouns import Batch, EvalRun, Lease

log = logging.getLogger("tunesmith.service")

AT_ONCE = 4
"""Runs and batches in work together, the oldest first: each has its rows in memory, and all share the gate."""
LOOK_SECONDS = 1.0
"""Between two looks into the store; a bell wakes earlier."""
LEASE_SECONDS = 15.0
"""So long another server waits before it takes up what a server that was killed had in work."""
RENEW_SECONDS = 5.0
LONGEST_WAIT = 10.0
"""Seconds that a row waits at most before it is asked again, when the engine's queue was full."""
ELSEWHERE_SECONDS = 3.0
"""Until a server looks again at work that another one has."""
AWAY_SECONDS = 10.0
"""Until work is taken up again that met a database that was away, or a full disk."""
PATIENCE = 3_600.0
"""Seconds after which a row is refused as a client would be."""


@dataclass(frozen=True, slots=True)
class Sort:
    """One sort of work: what is open, when to stop, how it is done, what is done after stopping, and how a mistake of
    ours is told in the record.
    """

    record: type[Any]
    open: tuple[str, ...]
    stopping: tuple[str, ...]
    do: Callable[[Service, Post, Gate, Any], Awaitable[None]]
    settle: Callable[[Service, Any], Awaitable[None]]
    fault: Callable[[Any, Mapping[str, str], int], dict[str, Any]]


SORTS = (
    Sort(EvalRun, LIVE, ("canceled",), run_eval, settle_run, lambda run, told, now: {"error": told}),
    Sort(
        Batch,
        (*RUNNING, "cancelling"),
        ("cancelling",),
        run_batch,
        settle_batch,
        lambda batch, told, now: {
            "errors": {"object": "list", "data": [{**told, "line": None, "param": None}]},
            "moments": {**batch.moments, "failed_at": now},
        },
    ),
)


class Background:
    """`start()` within the server's event loop, `await stop()` before the store is closed."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.holder = f"server:{secrets.token_hex(8)}"
        self._gate = Gate(service.engine)
        self._post = patient(self._gate.counted(Inner(service).post))
        self._works: dict[str, asyncio.Task[None]] = {}
        self._put_off: dict[str, float] = {}
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for work."""
        self._looking = asyncio.get_running_loop().create_task(self._look(), name="background work")

    async def stop(self) -> None:
        """Leave everything as it is, for the next server to go on with."""
        tasks = [task for task in (self._looking, *self._works.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._looking = None
        self._works.clear()

    async def _look(self) -> None:
        while True:
            try:
                for sort in SORTS:
                    for record in await asyncio.to_thread(self._open, sort):
                        if self._may_begin(sort, record):
                            self._begin(sort, record)
            except Exception:
                # A database that is away for a moment must not end the work of a server that goes on without.
                log.exception("looking for runs and batches failed")
            await self.service.bell.wait(LOOK_SECONDS)

    def _open(self, sort: Sort) -> tuple[Any, ...]:
        return self.service.store.all(sort.record, {"status": sort.open})

    def _may_begin(self, sort: Sort, record: Any) -> bool:
        if record.id in self._works or time.monotonic() < self._put_off.get(record.id, 0):
            return False
        self._put_off.pop(record.id, None)
        return len(self._works) < AT_ONCE or record.status in sort.stopping

    def _begin(self, sort: Sort, record: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._work(sort, record), name=f"work on {record.id}")
        self._works[record.id] = task
        task.add_done_callback(partial(self._end, record.id))

    def _end(self, id: str, task: asyncio.Task[None]) -> None:
        self._works.pop(id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # It could not even be begun or failed: the store is away. The next look tries again.
            log.error("work in the background could not be done", exc_info=error, extra={"work": id})

    async def _work(self, sort: Sort, record: Any) -> None:
        name = f"{sort.record.__name__.lower()}:{record.id}"
        store = self.service.store
        lease = await asyncio.to_thread(store.take_lease, name, self.holder, LEASE_SECONDS)
        if lease is None:
            # Another server does it: what is behind it in the queue may be ours.
            self._put_off[record.id] = time.monotonic() + ELSEWHERE_SECONDS
            return
        try:
            await self._under_lease(sort, record, lease)
        except Exception as error:
            if is_away(error):
                log.warning("work in the background is put off: %s", error, extra={"work": name})
                self._put_off[record.id] = time.monotonic() + AWAY_SECONDS
                return
            # One run that meets a mistake of ours must not end the others.
            log.exception("work in the background failed", extra={"work": name})
            await asyncio.to_thread(_fail, self.service, sort, record.id)
        finally:
            await asyncio.shield(asyncio.to_thread(store.release, lease))
            self.service.bell.ring()  # there is room for the next

    async def _under_lease(self, sort: Sort, record: Any, lease: Lease) -> None:
        """Do it, and look meanwhile whether it shall stop and whether it is still ours."""
        loop, store = asyncio.get_running_loop(), self.service.store
        now = await asyncio.to_thread(store.get, sort.record, record.id)
        if now is None or now.status in sort.stopping:
            await sort.settle(self.service, record)
            return
        if now.status not in sort.open:
            return  # done between our look and our lease
        work = loop.create_task(self._done(sort, now))
        renewed = loop.time()
        try:
            while not work.done():
                rung = loop.create_task(self.service.bell.wait(LOOK_SECONDS))
                await asyncio.wait({work, rung}, return_when=asyncio.FIRST_COMPLETED)
                rung.cancel()
                if work.done():
                    break
                now = await asyncio.to_thread(store.get, sort.record, record.id)
                if now is None or now.status in sort.stopping:
                    await _ended(work)
                    await sort.settle(self.service, record)
                    return
                if loop.time() - renewed > RENEW_SECONDS:
                    renewed = loop.time()
                    held = await asyncio.to_thread(store.renew, lease, LEASE_SECONDS)
                    if held is None:
                        log.warning("a lease was lost: another server goes on", extra={"work": lease.id})
                        return
        finally:
            await _ended(work)
        work.result()

    async def _done(self, sort: Sort, record: Any) -> None:
        await sort.do(self.service, self._post, self._gate, record)


async def _ended(work: asyncio.Task[None]) -> None:
    """Cancel it if it goes on, and wait until it has ended."""
    work.cancel()
    await asyncio.wait({work})


def is_away(error: BaseException) -> bool:
    """Whether it is no mistake of anybody: the database is away for a moment, or the disk is full."""
    from sqlalchemy.exc import OperationalError

    if isinstance(error, BaseExceptionGroup):
        return all(is_away(one) for one in error.exceptions)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, OperationalError)


def _fail(service: Service, sort: Sort, id: str) -> None:
    told = {"code": "server_error", "message": "The server had an error while working on this."}
    record = service.store.get(sort.record, id)
    if record is not None:
        fields = sort.fault(record, told, service.now())
        service.store.move(sort.record, id, "failed", only_from=sort.open, **fields)


def patient(post: Post) -> Post:
    """Asks again after a while where there is no room for a request now, for up to `PATIENCE`."""

    async def again(path: str, body: Mapping[str, Any]) -> Reply:
        until = time.monotonic() + PATIENCE
        while True:
            reply = await post(path, body)
            if reply.status not in (429, 503) or time.monotonic() > until:
                return reply
            given = reply.headers.get("retry-after", "1")
            await asyncio.sleep(min(float(given) if given.isdecimal() else 1.0, LONGEST_WAIT))

    return again
