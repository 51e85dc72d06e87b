"""A row over a graph that takes keys and values and gives them back longer: plain ONNX, in whatever runtime runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from tunesmith.inference.types import FloatArray

_CHUNK = 256
"""Tokens of a prompt read at once where only the last logits are wanted: logits are as wide as the vocabulary."""


class PastGraph(Protocol):
    """One pass of a graph for one row."""

    @property
    def vocabulary(self) -> int: ...

    def nothing(self) -> Any:
        """Keys and values of no tokens."""
        ...

    def step(self, ids: Sequence[int], past: Any, length: int) -> tuple[FloatArray, Any]:
        """Logits [len(ids), vocabulary] of the tokens behind `length` others, and keys and values of all."""
        ...

    def cut(self, past: Any, length: int) -> Any:
        """Keys and values of the first `length` tokens."""
        ...


class PastRow:
    """Implements `inference.types.RewindingRow`."""

    def __init__(self, graph: PastGraph) -> None:
        self._graph, self._past, self._length = graph, graph.nothing(), 0

    def append(self, ids: Sequence[int]) -> FloatArray:
        parts = [self._read(ids[i : i + _CHUNK]) for i in range(0, len(ids), _CHUNK)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros((0, self._graph.vocabulary), np.float32)

    def next(self, ids: Sequence[int]) -> FloatArray:
        for start in range(0, len(ids), _CHUNK):
            logits = self._read(ids[start : start + _CHUNK])
        last: FloatArray = logits[-1]
        return last

    def rewind(self, length: int) -> None:
        if length < self._length:
            self._past = self._graph.cut(self._past, length) if length else self._graph.nothing()
            self._length = length

    def close(self) -> None:
        self._past = None

    def _read(self, ids: Sequence[int]) -> FloatArray:
        logits, self._past = self._graph.step(ids, self._past, self._length)
        self._length += len(ids)
        return logits


class PastModel:
    """Implements `inference.types.TokenModel`."""

    def __init__(self, graph: PastGraph) -> None:
        self._graph = graph

    @property
    def vocabulary(self) -> int:
        return self._graph.vocabulary

    def row(self) -> PastRow:
        return PastRow(self._graph)
