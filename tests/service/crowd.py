"""Many clients at the same time, as a process of its own: `python -m tests.service.crowd PORT COUNT`.

Every connection is open before the first request is sent. Prints how many answers had which status; `0` are those that
never came.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from tunesmith.service.connections import make_room

REQUEST = b"GET /v1/models/gpt-4o HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


async def crowd(port: int, count: int) -> Counter[int]:
    """The statuses of `count` requests, each on a connection of its own."""
    settled, all_settled = 0, asyncio.Event()

    async def one() -> int:
        nonlocal settled
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return 0
        finally:
            settled += 1
            if settled == count:
                all_settled.set()
        try:
            await all_settled.wait()
            writer.write(REQUEST)
            await writer.drain()
            line = await asyncio.wait_for(reader.readline(), 120)
            await reader.readuntil(b"\r\n\r\n")
            return int(line.split()[1])
        except (OSError, TimeoutError, IndexError, asyncio.IncompleteReadError):
            return 0
        finally:
            writer.close()

    return Counter(await asyncio.gather(*(one() for _ in range(count))))


if __name__ == "__main__":
    port, count = int(sys.argv[1]), int(sys.argv[2])
    make_room(count)
    print(json.dumps(asyncio.run(crowd(port, count))))
