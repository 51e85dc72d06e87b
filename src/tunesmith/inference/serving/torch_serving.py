"""Serving with torch in this process: several bases, each resident once with its loop, and many adapters on each.

A base is loaded when it is first asked for. Adapters that can share it do (`adapters.batchable`), and are read from
their folder within moments; what cannot (a full fine-tune, an adapter that brings tokens or whole modules, another
method of PEFT) is a resident model of its own. Models and adapters that nobody asks leave when room is needed, those
unused for longest first.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tunesmith.errors import EngineError
from tunesmith.inference.serving.adapters import batchable
from tunesmith.inference.serving.making import make_request
from tunesmith.inference.serving.requests import Request
from tunesmith.inference.serving.resident import HeldAdapter, Resident, TorchLimits, stamp_of
from tunesmith.inference.serving.types import Ask, Loaded, ModelRef, OverloadedError, Piece, Usage
from tunesmith.models.adapter import CONFIG
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.models.methods import load_tuned
from tunesmith.recipe.schema import Base

__all__ = ["TorchLimits", "TorchServing"]

_PREPARING = 64
"""Requests that are prepared at once. Those whose model is being loaded wait in a thread too, which must not be one
that other models, or the rest of the process, need."""
_ONE_AT_A_TIME = threading.Lock()
"""`transformers` sets things for the whole process while it loads a model, so that two cannot be loaded at once."""


class TorchServing:
    """Implements `serving.types.ServingEngine` with torch models in this process."""

    def __init__(self, limits: TorchLimits | None = None) -> None:
        self._limits = limits or TorchLimits()
        self._residents: dict[tuple[str, Path | None], Resident] = {}
        self._loading: dict[tuple[str, Path | None], threading.Lock] = {}
        self._kinds: dict[Path, tuple[tuple[int, int], bool]] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_PREPARING, "serving")
        self._draining = False

    async def load(self, ref: ModelRef) -> Loaded:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._load, ref)

    async def submit(self, ask: Ask) -> AsyncIterator[Piece | Usage]:
        if self._draining:
            raise OverloadedError(5)
        loop = asyncio.get_running_loop()
        preparing = loop.run_in_executor(self._threads, self._prepared, ask, loop)
        try:
            resident, held, request = await asyncio.shield(preparing)
        except asyncio.CancelledError:  # the thread goes on, and what it takes is given back when it is done
            preparing.add_done_callback(self._give_back)
            raise
        try:
            resident.loop.submit(request)
            while isinstance(item := await request.items.get(), Piece):
                yield item
        finally:
            request.cancelled = True
            self._leave(resident, held)
        if isinstance(item, Exception):
            raise item
        yield item  # all is done: a reader who stops here holds on to nothing

    def forget(self, ref: ModelRef) -> None:
        if ref.adapter is None:
            return
        with self._lock:
            shared, own = self._residents.get((ref.base, None)), self._residents.get((ref.base, ref.adapter))
            if own is not None:
                own.unwanted = True
                if not own.asked:
                    self._close(own)
        if shared is not None:
            shared.forget(ref.adapter)

    def state(self) -> Mapping[str, float]:
        with self._lock:
            residents = list(self._residents.values())
        counts = [one.loop.counts for one in residents]
        read = sum(c.prompt_tokens for c in counts)
        cached = sum(c.cached_tokens for c in counts)
        return {
            "models_resident": float(len(residents)),
            "adapters_resident": float(sum(one.adapters for one in residents)),
            "running": float(sum(one.loop.running for one in residents)),
            "waiting": float(sum(one.loop.waiting for one in residents)),
            "requests": float(sum(c.requests for c in counts)),
            "requests_failed": float(sum(c.failed for c in counts)),
            "prompt_tokens": float(read + cached),
            "prompt_tokens_cached": float(cached),
            "answer_tokens": float(sum(c.answer_tokens for c in counts)),
            "steps": float(sum(c.steps for c in counts)),
            "preemptions": float(sum(c.preempted for c in counts)),
            "seconds_busy": sum(c.seconds for c in counts),
            "memory_bytes": float(sum(one.loop.remembered for one in residents)),
        }

    async def drain(self, seconds: float) -> None:
        self._draining = True
        until = time.monotonic() + seconds
        while time.monotonic() < until and not all(one.loop.idle for one in list(self._residents.values())):
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self._close_all)

    def _close_all(self) -> None:
        with self._lock:
            residents = list(self._residents.values())
            for resident in residents:
                self._close(resident)
        for resident in residents:
            resident.loop.join()

    def _close(self, resident: Resident) -> None:
        """Have a model leave; it is not waited for, as the lock is held."""
        key = next(key for key, one in self._residents.items() if one is resident)
        del self._residents[key]
        resident.loop.close()

    def _leave(self, resident: Resident, held: HeldAdapter | None) -> None:
        """Somebody asks a model no more."""
        resident.ask(held, -1)
        if resident.unwanted:
            with self._lock:
                if not resident.asked and resident in self._residents.values():
                    self._close(resident)

    def _give_back(self, done: asyncio.Future[tuple[Resident, HeldAdapter | None, Request]]) -> None:
        if not done.cancelled() and done.exception() is None:
            resident, held, _ = done.result()
            self._leave(resident, held)

    def _load(self, ref: ModelRef) -> Loaded:
        resident, held = self._resident_and_adapter(ref)
        try:
            return Loaded(ref, resident.context, resident.speaking(ref.chat_template).renderer)
        finally:
            self._leave(resident, held)

    def _prepared(self, ask: Ask, loop: asyncio.AbstractEventLoop) -> tuple[Resident, HeldAdapter | None, Request]:
        """Where an ask goes, and its request; model and adapter are counted as asked."""
        resident, held = self._resident_and_adapter(ask.model)
        try:
            return resident, held, make_request(ask, resident, None if held is None else held.adapter, loop)
        except BaseException:
            self._leave(resident, held)
            raise

    def _resident_and_adapter(self, ref: ModelRef) -> tuple[Resident, HeldAdapter | None]:
        """Where a model is, brought into memory if need be; both are counted as asked."""
        if ref.adapter is not None and not ref.adapter.is_dir():
            raise EngineError("the model's files are not there any more", where=ref.adapter.name)
        shared = ref.adapter is not None and self._batchable(ref.adapter)
        key = (ref.base, None if shared else ref.adapter)
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            with self._lock:
                resident = self._residents.get(key)
                if resident is not None:
                    resident.ask(None, 1)
                    resident.unwanted = False
            if resident is None:
                resident = self._bring(key)
        held = None
        try:
            if shared and ref.adapter is not None:
                held = resident.adapter(ref.adapter)
        except BaseException:
            self._leave(resident, None)
            raise
        return resident, held

    def _bring(self, key: tuple[str, Path | None]) -> Resident:
        """Bring a model into memory; it is counted as asked. Raises `OverloadedError` where none can make way for it,
        or the end has come meanwhile."""
        with _ONE_AT_A_TIME:
            self._make_way()
            resident = Resident(_loaded(*key, self._limits.dtype), self._limits)
            with self._lock:
                if self._draining:
                    resident.loop.close()
                    raise OverloadedError(5)
                self._residents[key] = resident
                resident.ask(None, 1)
        return resident

    def _batchable(self, folder: Path) -> bool:
        """`batchable`, looked up again where the file has changed."""
        if not (folder / CONFIG).is_file():
            return False
        stamp = stamp_of(folder)
        known = self._kinds.get(folder)
        if known is None or known[0] != stamp:
            known = self._kinds[folder] = (stamp, batchable(folder))
        return known[1]

    def _make_way(self) -> None:
        """Close the models unused for longest, so that another one has its place. Raises `OverloadedError` where all
        are at work."""
        with self._lock:
            while len(self._residents) >= self._limits.models:
                idle = [one for one in self._residents.values() if not one.asked]
                if not idle:
                    raise OverloadedError(max(one.loop.retry_after for one in self._residents.values()))
                self._close(min(idle, key=lambda one: one.used))


def _loaded(base: str, adapter: Path | None, dtype: str) -> LoadedBase:
    """A base, or what an adapter's folder makes of it."""
    spec = Base.model_validate({"model": base, "dtype": dtype})
    if adapter is None:
        return load_base(spec)
    if not (adapter / CONFIG).is_file() and (adapter / "config.json").is_file():
        return load_base(spec.model_copy(update={"model": str(adapter)}))
    loaded = load_base(spec)
    load_tuned(loaded, adapter)
    return loaded
