"""GGUF exports asked again: by llama.cpp where llama-cpp-python is installed, else read back into `transformers`.

llama.cpp is driven through the library's low-level functions, with keys and values in 32 bits, so that what differs
from the tuned model is the file and not the cache. Both ways ask through the tokenizer and the template in the folder.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tunesmith.errors import EngineError
from tunesmith.inference.gguf_file import GgufFile
from tunesmith.inference.stepping import SteppingEngine
from tunesmith.inference.torch_artifacts import ProbedTorchEngine, folder_renderer
from tunesmith.inference.types import FloatArray, ProbedEngine
from tunesmith.models.artifact import Artifact

MODEL = "model.gguf"
ADAPTERS = "adapters"
Reader = Literal["llama.cpp", "transformers"]
_AT_ONCE = 512
"""Tokens that llama.cpp reads in one step, at most."""
_ROOM = 2048
"""Tokens that a row has room for at first. The room for a long context can be larger than the model."""


def reader() -> Reader:
    """What opens GGUF files on this machine."""
    return "llama.cpp" if find_spec("llama_cpp") is not None else "transformers"


def open_gguf(artifact: Artifact, adapter: str | None = None, *, using: Reader | None = None) -> ProbedEngine:
    """See `inference.artifacts.Opener`. `using` chooses the reader; the engine's `reader` says which one it was.

    An adapter is a file of that name in the folder's `adapters`.
    """
    path = artifact.folder / MODEL
    added = _adapter_file(artifact, adapter)
    renderer = folder_renderer(artifact)
    if (using or reader()) == "llama.cpp":
        model = LlamaCppModel(path, artifact.context, added)
        return LlamaCppEngine(model, renderer, min(artifact.context, model.context))
    return _open_read_back(path, artifact, added, renderer)


def template_inside(artifact: Artifact) -> str | None:
    """The chat template that the file itself holds, by which llama.cpp and Ollama ask; None where it holds none."""
    found = GgufFile(artifact.folder / MODEL).fields.get("tokenizer.chat_template")
    return None if found is None else str(found)


def _adapter_file(artifact: Artifact, adapter: str | None) -> Path | None:
    if adapter is None:
        return None
    path = artifact.folder / ADAPTERS / f"{adapter}.gguf"
    if adapter not in artifact.adapters or not path.is_file():
        raise EngineError(
            f"this export holds no adapter {adapter!r}",
            where=str(artifact.folder),
            expected=f"one of {', '.join(artifact.adapters)}" if artifact.adapters else "no name of an adapter",
        )
    return path


def _open_read_back(path: Path, artifact: Artifact, adapter: Path | None, renderer: Any) -> ProbedEngine:
    if find_spec("gguf") is None:
        raise EngineError("the gguf library is not installed", where=str(path), fix="pip install 'tunesmith[gguf]'")
    from tunesmith.inference.gguf_reading import read_model

    model = read_model(path, adapter)
    places = int(model.config.max_position_embeddings)
    return ReadBackEngine(model, renderer, min(artifact.context, places))


class ReadBackEngine(ProbedTorchEngine):
    """A GGUF file read back into a `transformers` model."""

    reader: Reader = "transformers"


class LlamaCppEngine(SteppingEngine):
    """A GGUF file asked with llama.cpp."""

    reader: Reader = "llama.cpp"


class LlamaCppModel:
    """A GGUF file in llama.cpp; implements `inference.types.TokenModel`.

    Attributes
    ----------
    context: longest text in tokens; texts in longer contexts would be read with other frequencies (longrope).
    at_once: tokens read in one step, at most.
    """

    def __init__(self, path: Path, context: int, adapter: Path | None = None) -> None:
        self._lib = _library()
        options = self._lib.llama_model_default_params()
        options.n_gpu_layers = 0
        _LOG.clear()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise EngineError(f"llama.cpp cannot load this file{_said()}", where=str(path), fix="export again")
        self.context = min(
            context, int(self._lib.llama_model_n_ctx_train(self._model)), self._short_context() or context
        )
        self.at_once = min(_AT_ONCE, self.context)
        self._vocabulary = int(self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model)))
        self._adapter = self._load(adapter) if adapter is not None else None
        self._made: list[_Room] = []
        self._free: list[_Room] = []
        # Contexts go before the model, whatever ends first; also at the interpreter's end.
        weakref.finalize(self, _release, self._lib, self._model, self._made)

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    def row(self) -> LlamaCppRow:
        return LlamaCppRow(self, self._lib)

    def take_room(self, tokens: int) -> _Room:
        """An empty context for at least so many tokens, one that was given back where there is one."""
        fitting = [room for room in self._free if room.tokens >= tokens]
        if fitting:
            room = min(fitting, key=lambda one: one.tokens)
            self._free.remove(room)
            return room
        size = _ROOM
        while size < tokens:
            size *= 2
        room = _Room(self._new_context(min(size, self.context)), min(size, self.context))
        self._made.append(room)
        return room

    def give_back(self, room: _Room) -> None:
        """Empty a context and keep it for another row."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(room.context), True)
        self._free.append(room)

    def _load(self, adapter: Path) -> Any:
        _LOG.clear()
        loaded = self._lib.llama_adapter_lora_init(self._model, str(adapter).encode())
        if not loaded:
            raise EngineError(f"llama.cpp cannot load this adapter{_said()}", where=str(adapter), fix="export it again")
        return loaded

    def _short_context(self) -> int | None:
        """Tokens up to which the factors for short texts hold, where the file has two kinds of them."""
        kind = self._meta("rope.scaling.type")
        original = self._meta("rope.scaling.original_context_length")
        return int(original) if kind == "longrope" and original else None

    def _meta(self, key: str) -> str | None:
        """A setting of the architecture, as text."""
        return self._text(f"{self._text('general.architecture')}.{key}")

    def _text(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(256)
        size = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if size >= 0 else None

    def _new_context(self, tokens: int) -> Any:
        lib = self._lib
        options = lib.llama_context_default_params()
        options.n_ctx = tokens
        options.n_batch = options.n_ubatch = self.at_once
        options.n_threads = options.n_threads_batch = _threads()
        options.type_k = options.type_v = lib.GGML_TYPE_F32
        options.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.swa_full = True  # so that a row can be rewound
        options.no_perf = True
        context = lib.llama_init_from_model(self._model, options)
        if not context:
            raise EngineError("llama.cpp has no room for a context", expected=f"memory for {tokens} tokens")
        if self._adapter is not None:
            chosen = (lib.llama_adapter_lora_p_ctypes * 1)(self._adapter)
            if lib.llama_set_adapters_lora(context, chosen, 1, (ctypes.c_float * 1)(1.0)) != 0:
                raise EngineError("llama.cpp refuses the adapter")
        return context


@dataclass(frozen=True, slots=True, eq=False)
class _Room:
    """One of llama.cpp's contexts, and how many tokens it holds."""

    context: Any
    tokens: int


class LlamaCppRow:
    """A row of tokens in llama.cpp; implements `inference.types.RewindingRow`."""

    def __init__(self, model: LlamaCppModel, lib: Any) -> None:
        self._model, self._lib = model, lib
        self._ids: list[int] = []
        self._room: _Room | None = None

    def append(self, ids: Sequence[int]) -> FloatArray:
        parts = [self._read(part, every=True) for part in self._parts(ids)]
        return np.concatenate(parts) if parts else np.zeros((0, self._model.vocabulary), dtype=np.float32)

    def next(self, ids: Sequence[int]) -> FloatArray:
        last: FloatArray = np.zeros((0, self._model.vocabulary), dtype=np.float32)
        for part in self._parts(ids):
            last = self._read(part, every=False)
        found: FloatArray = last[-1]
        return found

    def _parts(self, ids: Sequence[int]) -> list[Sequence[int]]:
        """What is read in one step each. llama.cpp ends the whole process where there is no room for them."""
        needed = len(self._ids) + len(ids)
        if needed > self._model.context:
            raise EngineError(
                f"llama.cpp cannot read {needed} tokens here",
                expected=f"at most {self._model.context}, the context that it was opened with",
            )
        if self._room is None or self._room.tokens < needed:
            self._move(needed)
        return [ids[i : i + self._model.at_once] for i in range(0, len(ids), self._model.at_once)]

    def _move(self, needed: int) -> None:
        """Into a larger room, where what was read is read again."""
        read = self._ids
        self.close()
        self._ids, self._room = [], self._model.take_room(needed)
        for i in range(0, len(read), self._model.at_once):
            self._read(read[i : i + self._model.at_once], every=False)

    def rewind(self, length: int) -> None:
        del self._ids[length:]
        if self._room is not None:
            self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._room.context), 0, length, -1)

    def close(self) -> None:
        if self._room is not None:
            self._model.give_back(self._room)
            self._room = None

    def _read(self, ids: Sequence[int], *, every: bool) -> FloatArray:
        """Logits of these tokens, of the last alone unless `every`; a copy, for llama.cpp uses the memory again."""
        context = self._room.context if self._room is not None else None
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i] = int(token), len(self._ids) + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = 1 if every or i == len(ids) - 1 else 0
            code = self._lib.llama_decode(context, batch)
        finally:
            self._lib.llama_batch_free(batch)
        if code != 0:
            raise EngineError(f"llama.cpp cannot read on (code {code})", expected="tokens of its vocabulary")
        self._ids += [int(token) for token in ids]
        count = len(ids) if every else 1
        pointer = self._lib.llama_get_logits(context)
        logits: FloatArray = np.ctypeslib.as_array(pointer, shape=(count, self._model.vocabulary)).copy()
        return logits


def _release(lib: Any, model: Any, rooms: list[_Room]) -> None:
    for room in rooms:
        lib.llama_free(room.context)
    lib.llama_model_free(model)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _library() -> Any:
    """llama.cpp's functions, with its log kept. Raises `EngineError` where it is not installed."""
    try:
        import llama_cpp
    except ImportError as error:
        raise EngineError("llama.cpp is not installed", fix="pip install llama-cpp-python") from error
    if not _LISTENERS:
        listener = llama_cpp.llama_log_callback(lambda _level, text, _data: _LOG.append(text))
        _LISTENERS.append(listener)
        llama_cpp.llama_log_set(listener, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


_LISTENERS: list[Any] = []
"""What llama.cpp writes its log to, which must live as long as it."""
_LOG: deque[bytes] = deque(maxlen=50)


def _said() -> str:
    """The last complaint in llama.cpp's log, with a colon before it."""
    lines = [text.decode(errors="replace").strip() for text in _LOG]
    complaint = next((line for line in reversed(lines) if "error" in line.lower()), "")
    return f": {complaint.rpartition(': ')[2]}" if complaint else ""
