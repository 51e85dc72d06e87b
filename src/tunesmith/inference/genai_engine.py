"""Models of ONNX Runtime GenAI as engines: token by token for forms, draws and scores, by its own loop where the most
probable token is all that is asked for.

The tokenizer is the one in the artifact's folder, as everywhere, not GenAI's. One loaded model serves every adapter of
an artifact (`GenaiModel.with_adapter`) and any number of rows in any number of threads.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import EngineError
from tunesmith.inference.genai_config import adapter_file, open_config, read_config, runtime
from tunesmith.inference.stepping import SteppingEngine
from tunesmith.inference.torch_artifacts import folder_renderer, refuse_names
from tunesmith.inference.types import FloatArray
from tunesmith.models.artifact import Artifact

_NEUTRAL = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "min_length": 0, "no_repeat_ngram_size": 0}
"""Most probable tokens, whatever a folder's own settings of generation are."""


def open_genai(artifact: Artifact, adapter: str | None = None) -> SteppingEngine:
    """An artifact of the kinds `onnx` and `onnx-multi` as an engine; see `inference.artifacts.open_artifact`."""
    if artifact.target.kind != "onnx-multi":
        refuse_names(artifact, adapter)
    model = GenaiModel(artifact.folder, artifact.context).with_adapter(adapter)
    return SteppingEngine(model, folder_renderer(artifact), model.context)


class GenaiModel:
    """A folder of ONNX Runtime GenAI in memory; implements `inference.types.SizedModel`.

    Attributes
    ----------
    context: longest row in tokens; keys and values of a row take their memory when it is made.
    absent: the provider that the folder was made for and that is not on this machine: the CPU runs it. None: it is.
    """

    def __init__(self, folder: Path, context: int, threads: int | None = None) -> None:
        """Raises `EngineError` where the runtime is missing or refuses the folder."""
        self._og = runtime()
        settings = read_config(folder)
        self.folder = folder
        self.context = min(context, int(settings["model"]["context_length"]))
        self._vocabulary = int(settings["model"]["vocab_size"])
        self.rewinds = not settings["model"]["decoder"].get("sliding_window")
        self._shared = _Shared()
        try:
            config, self.absent = open_config(folder, threads)
            self._shared.model = self._og.Model(config)
        except RuntimeError as error:
            raise _refused(error, folder) from error
        self._adapter: str | None = None

    @property
    def vocabulary(self) -> int:
        """Logits per token."""
        return self._vocabulary

    def with_adapter(self, name: str | None) -> GenaiModel:
        """The same loaded model with another adapter, or with none. Raises `EngineError` for a name it has not."""
        if name is not None:
            self._load(name)
        other = object.__new__(GenaiModel)
        other.__dict__.update(self.__dict__)
        other._adapter = name
        return other

    def row(self) -> GenaiRow:
        """A new, empty row of up to `context` tokens."""
        return self.row_of(self.context)

    def row_of(self, length: int) -> GenaiRow:
        """A new, empty row of up to `length` tokens, whose keys and values take memory for so many only."""
        with self._shared.lock:
            if self._shared.model is None:
                raise EngineError("the model is closed")
            kind = RewindingGenaiRow if self.rewinds else GenaiRow
            try:
                params = self._og.GeneratorParams(self._shared.model)
                params.set_search_options(max_length=min(length, self.context), **_NEUTRAL)
                generator = self._og.Generator(self._shared.model, params)
                if self._adapter is not None:
                    generator.set_active_adapter(self._shared.adapters, self._adapter)
            except RuntimeError as error:
                raise _refused(error, self.folder) from error
            made = kind(generator)
            self._shared.rows.add(made)
        return made

    def close(self) -> None:
        """Give back the memory; rows that are still read are closed first. It may be called twice, from any thread."""
        with self._shared.lock:
            for row in list(self._shared.rows):
                row.close()
            self._shared.adapters = None
            self._shared.model = None

    def _load(self, name: str) -> None:
        file = adapter_file(self.folder, name)
        with self._shared.lock:
            if name in self._shared.loaded:
                return
            if self._shared.model is None:
                raise EngineError("the model is closed")
            try:
                if self._shared.adapters is None:
                    self._shared.adapters = self._og.Adapters(self._shared.model)
                self._shared.adapters.load(str(file), name)
            except RuntimeError as error:
                raise _refused(error, file) from error
            self._shared.loaded.add(name)


class GenaiRow:
    """One row of tokens; implements `inference.types.GreedyRow`. One call at a time; others wait."""

    def __init__(self, generator: Any) -> None:
        self._generator, self._lock = generator, threading.Lock()

    def append(self, ids: Sequence[int]) -> FloatArray:
        """See `inference.types.TokenRow.append`."""
        with self._lock:
            return self._read(ids, every=True)

    def next(self, ids: Sequence[int]) -> FloatArray:
        """See `inference.types.TokenRow.next`."""
        with self._lock:
            return self._read(ids)

    def write(self, ids: Sequence[int], limit: int, stops: frozenset[int]) -> list[int]:
        """See `inference.types.GreedyRow.write`."""
        with self._lock:
            first = self._read(ids)
            answer: list[int] = []
            if not np.isfinite(first.max()):  # the model has come apart
                return answer
            generator = self._generator
            try:
                while len(answer) < limit:
                    generator.generate_next_token()
                    answer.append(int(generator.get_next_tokens()[0]))
                    if answer[-1] in stops or generator.is_done():
                        break
            except RuntimeError as error:
                raise EngineError(f"ONNX Runtime GenAI cannot write on: {_said(error)}") from error
            return answer

    def close(self) -> None:
        """Give back what it holds; it may be called twice."""
        with self._lock:
            self._generator = None

    def _read(self, ids: Sequence[int], *, every: bool = False) -> FloatArray:
        if self._generator is None:
            raise EngineError("the row is closed")
        try:
            self._generator.append_tokens(np.asarray([ids], dtype=np.int32))
            found = self._generator.get_output("logits")[0] if every else self._generator.get_logits()[0, -1]
        except RuntimeError as error:
            raise EngineError(f"ONNX Runtime GenAI cannot read on: {_said(error)}") from error
        return np.array(found, dtype=np.float32)


class RewindingGenaiRow(GenaiRow):
    """A row of a model that keeps the keys and values of all tokens; implements `inference.types.RewindingRow`."""

    def rewind(self, length: int) -> None:
        """See `inference.types.RewindingRow.rewind`."""
        with self._lock:
            if self._generator is None:
                raise EngineError("the row is closed")
            if length != self._generator.token_count():
                self._generator.rewind_to(length)


class _Shared:
    """What all views of one loaded model have in common."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.model: Any = None
        self.adapters: Any = None
        self.loaded: set[str] = set()
        self.rows: weakref.WeakSet[GenaiRow] = weakref.WeakSet()


def _refused(error: RuntimeError, where: Path) -> EngineError:
    return EngineError(f"ONNX Runtime GenAI cannot open this: {_said(error)}", where=str(where), fix="export again")


def _said(error: RuntimeError) -> str:
    return str(error).strip().split("\n", 1)[0]
