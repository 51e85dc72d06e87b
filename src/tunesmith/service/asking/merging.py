"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")
_HELD = 64
"""Things that wait to be taken; a reader that is slow slows the streams down."""


async def merged(streams: Sequence[AsyncGenerator[T, None]], at_a_time: int) -> AsyncGenerator[tuple[int, T], None]:
    """What the streams yield, as it comes, each with the place of its stream; the order within a stream is kept.

    At most `at_a_time` of them go on at once. The first error ends them all and is raised; closing closes them all.
    """
    room = asyncio.Semaphore(at_a_time)
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(_HELD)

    async def follow(place: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with room, aclosing(stream):
                async for one in stream:
                    await queue.put((place, one))
        except Exception as error:  # handed over whole, and raised where the streams are read
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(follow(place, stream)) for place, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            got = await queue.get()
            if isinstance(got, BaseException):
                raise got
            if got is None:
                left -= 1
            else:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
