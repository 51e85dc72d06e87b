"""How much the work in the background may ask of the engine: little, and less while clients wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from tunesmith.inference.serving.types import ServingEngine

AT_ONCE = 8
"""Rows that are in work together: enough for a full batch of the engine, few enough for its queue."""
_LOOK_AGAIN = 0.02
"""Seconds between two looks at the engine's queue."""


class Gate:
    """Places for rows. A further row begins only while no request waits in the engine's queue; one is always let
    through, so that the work goes on under any load.
    """

    def __init__(self, engine: ServingEngine | None, at_once: int = AT_ONCE) -> None:
        self.at_once = at_once
        self._engine = engine
        self._places = asyncio.Semaphore(at_once)
        self._inside = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and have it."""
        async with self._places:
            while self._inside and self._engine is not None and self._engine.state().get("waiting", 0) > 0:
                await asyncio.sleep(_LOOK_AGAIN)
            self._inside += 1
            try:
                yield
            finally:
                self._inside -= 1

    async def each(self, do: Callable[[int], Awaitable[None]], places: Iterable[int]) -> None:
        """Do it for every number, a few at a time; the first error or a cancellation ends all of them."""
        left = iter(places)

        async def work() -> None:
            # The iterator is shared, so every number is taken once.
            for place in left:
                await do(place)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.at_once):
                group.create_task(work())
