"""One model in memory: its loop, its adapters, and how it renders and speaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import EngineError
from tunesmith.inference.grammar import Grammars
from tunesmith.inference.serving.adapters import Adapter, Current, read_updates, wrap_linears
from tunesmith.inference.serving.memory import memory_for_answers
from tunesmith.inference.serving.pace import LoopLimits
from tunesmith.inference.serving.requests import Voice
from tunesmith.inference.serving.runner import Part, Runner, best_runner
from tunesmith.inference.serving.scheduler import ModelLoop
from tunesmith.inference.serving.threads import best_threads
from tunesmith.inference.serving.token_bytes import TokenBytes
from tunesmith.models.adapter import WEIGHTS
from tunesmith.models.load import LoadedBase
from tunesmith.text.render import Renderer

_ROWS_TRIED = 8
"""With how many rows in work it is found out how many threads serve best."""


@dataclass(frozen=True, slots=True)
class TorchLimits:
    """What serving takes. `models`: resident models; `adapters`: resident adapters of each; `rows`, `waiting`, `memory`
    (bytes; None: a share of what is free), `stall`: see `LoopLimits`. `dtype`: of weights, as `base.dtype`.
    """

    models: int = 3
    adapters: int = 32
    rows: int = 32
    waiting: int = 256
    memory: int | None = None
    stall: float = 0.1
    dtype: str = "auto"


@dataclass(slots=True)
class HeldAdapter:
    adapter: Adapter
    stamp: tuple[int, int]
    used: float
    asked: int = 0
    unwanted: bool = False


@dataclass(slots=True)
class Speaking:
    """A base's renderer for one chat template, and what goes with it; `longest_token` in characters."""

    renderer: Renderer
    voice: Voice
    grammars: Callable[[], Grammars]
    longest_token: int


class Resident:
    """One model in memory with its loop and its adapters.

    Attributes
    ----------
    asked: how many ask it now.
    unwanted: whether it is to leave when nobody does.
    """

    def __init__(self, base: LoadedBase, limits: TorchLimits) -> None:
        self.base, self.context = base, base.context
        self.vocabulary = int(base.model.get_input_embeddings().weight.shape[0])
        self.used, self.asked, self.unwanted = time.monotonic(), 0, False
        current = Current()
        self._linears = wrap_linears(base.model.eval().requires_grad_(False), current)
        runner: Runner = best_runner(base.model, current)
        memory = limits.memory if limits.memory is not None else memory_for_answers()
        self.loop = ModelLoop(
            runner, LoopLimits(limits.rows, limits.waiting, memory, limits.stall), name=base.name,
            threads=_threads(runner),
        )  # fmt: skip
        self._most_adapters = limits.adapters
        self._adapters: dict[Path, HeldAdapter] = {}
        self._speaking: dict[str, Speaking] = {}
        # What takes long is done under the first; the second is never held for long, as event loops wait for it.
        self._preparing, self._lock = threading.Lock(), threading.Lock()

    @property
    def adapters(self) -> int:
        return len(self._adapters)

    def speaking(self, template: str) -> Speaking:
        """Renderer and decoder for a chat template. Raises `RecipeError` for one that this tokenizer cannot have."""
        with self._preparing:
            if template not in self._speaking:
                self._speaking[template] = speaking_by(Renderer(self.base.tokenizer, template), self.vocabulary)
            return self._speaking[template]

    def adapter(self, folder: Path) -> HeldAdapter:
        """The adapter in a folder, read where it is not in memory or its file has changed; counted as asked."""
        with self._preparing:
            stamp = stamp_of(folder)
            held = self._adapters.get(folder)
            if held is None or held.stamp != stamp:
                held = HeldAdapter(read_updates(folder, self._linears), stamp, time.monotonic())
            with self._lock:
                before = self._adapters.get(folder)
                if before is not held:
                    self._adapters[folder] = held
                    if before is not None:
                        self._unwant(before)
                held.asked += 1
                held.used, held.unwanted = time.monotonic(), False
                self._shed()
            return held

    def ask(self, held: HeldAdapter | None, more: int) -> None:
        """Count who asks this model and an adapter of it, so that neither leaves meanwhile."""
        with self._lock:
            self.asked += more
            self.used = time.monotonic()
            if held is not None:
                held.asked += more
                if held.unwanted and not held.asked:
                    self._drop(held)

    def forget(self, folder: Path) -> None:
        """Drop an adapter as soon as nobody asks it."""
        with self._lock:
            if (held := self._adapters.get(folder)) is not None:
                self._unwant(held)

    def _shed(self) -> None:
        """The adapters unused for longest leave where there are too many."""
        free = sorted((held for held in self._adapters.values() if not held.asked), key=lambda held: held.used)
        for held in free[: max(0, len(self._adapters) - self._most_adapters)]:
            self._drop(held)

    def _unwant(self, held: HeldAdapter) -> None:
        held.unwanted = True
        if not held.asked:
            self._drop(held)

    def _drop(self, held: HeldAdapter) -> None:
        if self._adapters.get(held.adapter.folder) is held:
            del self._adapters[held.adapter.folder]
        self.loop.forget(held.adapter)


def stamp_of(folder: Path) -> tuple[int, int]:
    """What tells whether an adapter's weights have been written anew."""
    try:
        found = (folder / WEIGHTS).stat()
    except OSError as error:
        raise EngineError("the model's files are not there any more", where=folder.name) from error
    return found.st_mtime_ns, found.st_size


def speaking_by(renderer: Renderer, vocabulary: int) -> Speaking:
    """What goes with a renderer, for a model with logits of this width."""
    tokenizer = renderer.tokenizer
    stops = sorted(renderer.stop_ids)
    voice = Voice(_decoder(renderer), TokenBytes(tokenizer, vocabulary, stops), frozenset(stops))
    made: list[Grammars] = []
    lock = threading.Lock()

    def grammars() -> Grammars:
        with lock:
            if not made:
                made.append(Grammars(tokenizer, vocabulary, renderer.stop_ids))
            return made[0]

    return Speaking(renderer, voice, grammars, max(map(len, tokenizer.get_vocab())))


def _decoder(renderer: Renderer) -> Callable[[list[int]], str]:
    """Ids of an answer to text, as `Renderer.decode`; without its wrapping where the tokenizer is a fast one."""
    tokenizer = renderer.tokenizer
    if getattr(tokenizer, "is_fast", False):
        backend = tokenizer.backend_tokenizer
        return lambda ids: backend.decode(ids, skip_special_tokens=True) if ids else ""
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _threads(runner: Runner) -> int:
    """Threads with which a few rows are continued fastest."""
    memories = [runner.memory(0) for _ in range(_ROWS_TRIED)]
    return best_threads(lambda: runner.run([Part(memory, [0], None) for memory in memories]))
