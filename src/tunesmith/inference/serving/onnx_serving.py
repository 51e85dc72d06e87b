"""Serving of exported ONNX models in this process: several at once, and the adapters that each of them holds.

`ModelRef.base` is an export's folder (kinds onnx, onnx-multi, onnx-plain), `ModelRef.variant` one of its adapters. Each
model has the loop that torch models have (`scheduler`), so places, queues, known beginnings, forms, stop texts, scores
and the end are the same; only what computes a step differs (`ort_runner`). Rows of one adapter are continued together;
adapters of one step follow each other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith.errors import EngineError
from tunesmith.inference.genai_config import adapter_file
from tunesmith.inference.ort_engine import open_graph
from tunesmith.inference.serving.engines import ONNX_KINDS
from tunesmith.inference.serving.making import make_request
from tunesmith.inference.serving.memory import memory_for_answers
from tunesmith.inference.serving.ort_runner import OrtAdapter, best_ort_runner
from tunesmith.inference.serving.pace import LoopLimits
from tunesmith.inference.serving.requests import Request
from tunesmith.inference.serving.resident import Speaking, speaking_by
from tunesmith.inference.serving.scheduler import ModelLoop
from tunesmith.inference.serving.types import Ask, Loaded, ModelRef, OverloadedError, Piece, Usage
from tunesmith.inference.torch_artifacts import folder_renderer
from tunesmith.models.artifact import MANIFEST, Artifact, read_artifact

_PREPARING = 32
"""Requests that are prepared at once, those that wait for their model to be opened among them."""


@dataclass(frozen=True, slots=True)
class OnnxLimits:
    """What serving takes. `models`: open models; `adapters`: those of each in memory; the others as in `LoopLimits`
    (`memory` in bytes, None: a share of what is free)."""

    models: int = 3
    adapters: int = 32
    rows: int = 32
    waiting: int = 256
    memory: int | None = None
    stall: float = 0.1


class OnnxResident:
    """One export in memory, with its loop and its adapters.

    Attributes
    ----------
    asked: how many ask it now.
    stamp: of its manifest; another one means that it was exported anew.
    """

    def __init__(self, artifact: Artifact, stamp: tuple[int, int], limits: OnnxLimits) -> None:
        self.artifact, self.stamp = artifact, stamp
        session, graph = open_graph(artifact)
        renderer = folder_renderer(artifact)
        self._speaking = speaking_by(renderer, graph.vocabulary)
        self.context, self.vocabulary = artifact.context, graph.vocabulary
        memory = limits.memory if limits.memory is not None else memory_for_answers()
        places = LoopLimits(limits.rows, limits.waiting, memory, limits.stall)
        self.loop = ModelLoop(best_ort_runner(session, graph), places, name=artifact.folder.name)
        self.asked, self.used = 0, time.monotonic()
        self._most = limits.adapters
        self._adapters: dict[str, OrtAdapter] = {}
        self._asking = Counter[str]()
        # Files are read under the first; the second is never held for long, as event loops wait for it.
        self._reading, self._lock = threading.Lock(), threading.Lock()

    @property
    def adapters(self) -> int:
        return len(self._adapters)

    def speaking(self, template: str) -> Speaking:
        """What lies in the export's folder, whatever template is named."""
        return self._speaking

    def take(self, name: str | None) -> OrtAdapter | None:
        """An adapter by its name, read where it is not in memory, and counted as asked until `give_back`.

        Raises `EngineError` where there is none.
        """
        if name is None:
            return None
        if name not in self.artifact.adapters:
            raise EngineError(
                f"this export has no adapter {name!r}", where=self.artifact.folder.name,
                expected=f"one of {', '.join(self.artifact.adapters)}" if self.artifact.adapters else "no adapter",
            )  # fmt: skip
        with self._reading:
            found = self._adapters.get(name) or read_adapter(self.artifact, name)
            with self._lock:
                self._adapters.pop(name, None)
                self._adapters[name] = found  # the one used last comes last
                self._asking[name] += 1
                self._shed()
            return found

    def give_back(self, adapter: OrtAdapter | None) -> None:
        """One who asked this adapter does so no more."""
        if adapter is not None:
            with self._lock:
                self._asking[adapter.name] -= 1
                self._shed()

    def _shed(self) -> None:
        """Adapters unused for longest leave where there are too many; one that is asked stays. The lock is held."""
        free = [name for name in self._adapters if not self._asking[name]]
        for name in free[: max(0, len(self._adapters) - self._most)]:
            self.loop.forget(cast(Any, self._adapters.pop(name)))


class OnnxServing:
    """Implements `serving.types.ServingEngine` with exported ONNX models in this process."""

    def __init__(self, limits: OnnxLimits | None = None) -> None:
        self._limits = limits or OnnxLimits()
        self._residents: dict[str, OnnxResident] = {}
        self._retired: list[OnnxResident] = []
        self._opening, self._lock = threading.Lock(), threading.Lock()
        self._threads = ThreadPoolExecutor(_PREPARING, "onnx serving")
        self._draining = False

    async def load(self, ref: ModelRef) -> Loaded:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._load, ref)

    async def submit(self, ask: Ask) -> AsyncIterator[Piece | Usage]:
        if self._draining:
            raise OverloadedError(5)
        loop = asyncio.get_running_loop()
        preparing = loop.run_in_executor(self._threads, self._prepared, ask, loop)
        try:
            resident, request = await asyncio.shield(preparing)
        except asyncio.CancelledError:  # the thread goes on, and what it takes is given back when it is done
            preparing.add_done_callback(self._give_back)
            raise
        try:
            resident.loop.submit(request)
            while isinstance(item := await request.items.get(), Piece):
                yield item
        finally:
            request.cancelled = True
            self._leave(resident, cast(Any, request.adapter))
        if isinstance(item, Exception):
            raise item
        yield item

    def forget(self, ref: ModelRef) -> None:
        """Close an export that nobody asks now; another one is closed when it is the one unused for longest."""
        with self._lock:
            resident = self._residents.get(ref.base)
            if resident is not None and not resident.asked:
                self._retire(ref.base)

    def state(self) -> Mapping[str, float]:
        with self._lock:
            residents = list(self._residents.values())
        counts = [one.loop.counts for one in residents]
        read, cached = sum(c.prompt_tokens for c in counts), sum(c.cached_tokens for c in counts)
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
        while time.monotonic() < until and any(not one.loop.idle for one in self._all()):
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self._close_all)

    def _all(self) -> list[OnnxResident]:
        return [*self._residents.values(), *self._retired]

    def _close_all(self) -> None:
        with self._lock:
            residents = self._all()
            self._residents, self._retired = {}, []
            for resident in residents:
                resident.loop.close()
        for resident in residents:
            resident.loop.join()

    def _retire(self, base: str) -> None:
        """Take an export out of those that are asked, and close it once nobody waits for it; the lock is held."""
        resident = self._residents.pop(base)
        if resident.asked:
            self._retired.append(resident)
        else:
            resident.loop.close()

    def _load(self, ref: ModelRef) -> Loaded:
        resident, adapter = self._asked(ref), None
        try:
            adapter = resident.take(ref.variant)
            return Loaded(ref, resident.context, resident.speaking(ref.chat_template).renderer)
        finally:
            self._leave(resident, adapter)

    def _prepared(self, ask: Ask, loop: asyncio.AbstractEventLoop) -> tuple[OnnxResident, Request]:
        resident, adapter = self._asked(ask.model), None
        try:
            adapter = resident.take(ask.model.variant)
            return resident, make_request(ask, resident, cast(Any, adapter), loop)
        except BaseException:
            self._leave(resident, adapter)
            raise

    def _asked(self, ref: ModelRef) -> OnnxResident:
        """The export of a reference, opened if need be; counted as asked until `_leave`."""
        stamp = _stamp(Path(ref.base))
        if (found := self._open_already(ref.base, stamp)) is not None:
            return found
        with self._opening:  # its files are compared with their hashes, which may take long
            if (found := self._open_already(ref.base, stamp)) is not None:
                return found
            with self._lock:
                if ref.base in self._residents:  # exported anew meanwhile
                    self._retire(ref.base)
                self._make_way()
            found = OnnxResident(_served(Path(ref.base)), stamp, self._limits)
            with self._lock:
                if self._draining:
                    found.loop.close()
                    raise OverloadedError(5)
                self._residents[ref.base] = found
                found.asked = 1
            return found

    def _open_already(self, base: str, stamp: tuple[int, int]) -> OnnxResident | None:
        with self._lock:
            found = self._residents.get(base)
            if found is None or found.stamp != stamp:
                return None
            found.asked += 1
            found.used = time.monotonic()
            return found

    def _make_way(self) -> None:
        """Close the exports unused for longest; the lock is held. Raises `OverloadedError` where all are at work."""
        while len(self._residents) >= self._limits.models:
            idle = [base for base, one in self._residents.items() if not one.asked]
            if not idle:
                raise OverloadedError(max(one.loop.retry_after for one in self._residents.values()))
            self._retire(min(idle, key=lambda base: self._residents[base].used))

    def _leave(self, resident: OnnxResident, adapter: OrtAdapter | None) -> None:
        resident.give_back(adapter)
        with self._lock:
            resident.asked -= 1
            resident.used = time.monotonic()
            if resident in self._retired and not resident.asked:
                self._retired.remove(resident)
                resident.loop.close()

    def _give_back(self, done: asyncio.Future[tuple[OnnxResident, Request]]) -> None:
        if not done.cancelled() and done.exception() is None:
            resident, request = done.result()
            self._leave(resident, cast(Any, request.adapter))


def _served(folder: Path) -> Artifact:
    """The export in a folder, its files compared with their hashes. Raises `EngineError` for one of another kind."""
    artifact = read_artifact(folder)
    if artifact.target.kind not in ONNX_KINDS:
        raise EngineError(
            f"an export of kind {artifact.target.kind} is not served by ONNX Runtime", where=folder.name,
            expected=" or ".join(ONNX_KINDS),
        )  # fmt: skip
    return artifact


def _stamp(folder: Path) -> tuple[int, int]:
    try:
        found = (folder / MANIFEST).stat()
    except OSError as error:
        raise EngineError("the model's files are not there any more", where=folder.name) from error
    return found.st_mtime_ns, found.st_size


def read_adapter(artifact: Artifact, name: str) -> OrtAdapter:
    """The factors of an adapter. Raises `EngineError` where its file cannot be read."""
    import onnxruntime

    path = adapter_file(artifact.folder, name)
    try:
        values = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
    except RuntimeError as error:
        raise EngineError(
            f"the adapter {name} cannot be read: {str(error).strip()}", where=artifact.folder.name, fix="export again"
        ) from error
    return OrtAdapter(name, values)
