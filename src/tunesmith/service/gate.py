"""How much the work in the background may ask of the engine: a batch's worth when it is idle, little beside clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tunesmith.inference.serving.types import ServingEngine
from tunesmith.service.inner import Post, Reply

AT_ONCE = 8
"""Rows that are in work together: enough for a good batch of the engine, few enough for its queue."""
BESIDE_CLIENTS = 1
"""The same while the engine answers somebody else: never none, so that the work goes on under any load."""
_LOOK_AGAIN = 0.02
"""Seconds between two looks at the engine."""


class Gate:
    """Places for rows of evals and batches."""

    def __init__(self, engine: ServingEngine | None, at_once: int = AT_ONCE) -> None:
        self.at_once = at_once
        self._engine = engine
        self._places = asyncio.Semaphore(at_once)
        self._inside = 0
        self._asked = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and have it."""
        async with self._places:
            while self._inside >= self._allowed():
                await asyncio.sleep(_LOOK_AGAIN)
            self._inside += 1
            try:
                yield
            finally:
                self._inside -= 1

    def counted(self, post: Post) -> Post:
        """`post`, known to the gate as its own work: whatever else the engine has in hand is a client's."""

        async def ask(path: str, body: Mapping[str, Any]) -> Reply:
            answers = _answers(body)
            self._asked += answers
            try:
                return await post(path, body)
            finally:
                self._asked -= answers

        return ask

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

    def _allowed(self) -> int:
        if self._engine is None:
            return self.at_once
        state = self._engine.state()
        clients = state.get("running", 0) + state.get("waiting", 0) - self._asked
        return BESIDE_CLIENTS if clients > 0 else self.at_once


def _answers(body: Mapping[str, Any]) -> int:
    """How many answers a request asks for, which the engine counts one by one."""
    count, prompt = body.get("n"), body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * (count if isinstance(count, int) and count > 1 else 1)
