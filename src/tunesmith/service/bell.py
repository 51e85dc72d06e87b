"""A bell: any thread rings it, and every task that waits for it in the event loop wakes."""

from __future__ import annotations

import asyncio
import threading


class Bell:
    """Wakes what looks into the store for work, so that it need not look often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def ring(self) -> None:
        """Wake all that wait; who begins to wait afterwards waits for the next ring."""
        with self._lock:
            for event, loop in self._waiting.items():
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    async def wait(self, seconds: float) -> bool:
        """Until it rings, but at most so long; whether it rang."""
        event = asyncio.Event()
        with self._lock:
            self._waiting[event] = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            with self._lock:
                del self._waiting[event]
        return True
