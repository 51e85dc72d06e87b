"""Which engine answers for a model: one is made for each kind when it is first asked for.

Kinds are `torch` (in this process), `onnx` (exported models, in this process too), `remote` (any OpenAI-compatible
address) and `vllm` (the same, where the adapters are folders that vLLM loads). Another kind is registered by its name
and a function that makes its engine.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from tunesmith.errors import EngineError
from tunesmith.inference.serving.types import Ask, Loaded, ModelRef, Piece, ServingEngine, Usage
from tunesmith.models.artifact import Kind

if TYPE_CHECKING:
    from tunesmith.inference.serving.torch_serving import TorchLimits

Maker = Callable[[], ServingEngine]
ONNX_KINDS: tuple[Kind, ...] = ("onnx", "onnx-multi", "onnx-plain")
"""Kinds of exports that the engine `onnx` opens."""


class Engines:
    """A `ServingEngine` made of several, by `ModelRef.engine`."""

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        self._makers = dict(makers)
        self._made: dict[str, ServingEngine] = {}
        self._lock = threading.Lock()

    def register(self, kind: str, make: Maker) -> None:
        """Make engines of a kind known; `make` is called once, when a model of that kind is first asked for."""
        with self._lock:
            self._makers[kind] = make

    async def load(self, ref: ModelRef) -> Loaded:
        return await (await asyncio.to_thread(self._engine, ref.engine)).load(ref)

    async def submit(self, ask: Ask) -> AsyncIterator[Piece | Usage]:
        engine = self._made.get(ask.model.engine)
        if engine is None:
            engine = await asyncio.to_thread(self._engine, ask.model.engine)
        stream = engine.submit(ask)
        try:
            async for item in stream:
                yield item
        finally:
            if isinstance(stream, AsyncGenerator):  # closing this one closes that one
                await stream.aclose()

    def forget(self, ref: ModelRef) -> None:
        if (engine := self._made.get(ref.engine)) is not None:
            engine.forget(ref)

    def state(self) -> Mapping[str, float]:
        """The sums over all engines, and which share of all prompts was known already."""
        sums: dict[str, float] = {}
        for engine in list(self._made.values()):
            for name, value in engine.state().items():
                sums[name] = sums.get(name, 0.0) + value
        if sums.get("prompt_tokens"):
            sums["cached_share"] = sums.get("prompt_tokens_cached", 0.0) / sums["prompt_tokens"]
        return sums

    async def drain(self, seconds: float) -> None:
        await asyncio.gather(*(engine.drain(seconds) for engine in list(self._made.values())))

    def _engine(self, kind: str) -> ServingEngine:
        with self._lock:
            if kind not in self._made:
                if kind not in self._makers:
                    known = ", ".join(sorted(self._makers))
                    raise EngineError(f"there is no engine {kind!r}", where="the model's engine", expected=known)
                self._made[kind] = self._makers[kind]()
            return self._made[kind]


def make_engine(*, adapters_resident: int = 32, batch_rows: int = 32, waiting: int = 256) -> Engines:
    """The engines of a server: adapters kept on each base, answers in work and answers that may wait for each model."""

    def torch() -> ServingEngine:
        from tunesmith.inference.serving.torch_serving import TorchLimits, TorchServing

        return TorchServing(TorchLimits(adapters=adapters_resident, rows=batch_rows, waiting=waiting))

    def onnx() -> ServingEngine:
        from tunesmith.inference.serving.onnx_serving import OnnxLimits, OnnxServing

        return OnnxServing(OnnxLimits(adapters=adapters_resident, rows=batch_rows, waiting=waiting))

    engines = serving_engines()
    engines.register("torch", torch)
    engines.register("onnx", onnx)
    return engines


def serving_engines(limits: TorchLimits | None = None) -> Engines:
    """The engines that come with the package; torch is imported when the first model of its kind is asked for."""

    def torch() -> ServingEngine:
        from tunesmith.inference.serving.torch_serving import TorchServing

        return TorchServing(limits)

    def remote() -> ServingEngine:
        from tunesmith.inference.serving.remote_serving import RemoteServing

        return RemoteServing()

    def vllm() -> ServingEngine:
        from tunesmith.inference.serving.vllm_serving import VllmServing

        return VllmServing()

    def onnx() -> ServingEngine:
        from tunesmith.inference.serving.onnx_serving import OnnxServing

        return OnnxServing()

    return Engines({"torch": torch, "remote": remote, "vllm": vllm, "onnx": onnx})
