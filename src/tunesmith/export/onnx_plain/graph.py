"""A causal model traced into an ONNX graph of standard operators, with what it remembers as inputs and outputs.

    input_ids, attention_mask, position_ids, past_key_values.N.key, past_key_values.N.value
        -> logits, present.N.key, present.N.value

`[batch, sequence]` ids, `[batch, past + sequence]` mask, keys and values `[batch, heads, past, width]`: batch, sequence
and past are free, and a model is first asked with a past of length 0. The exporter by tracing comes first: it takes
seconds where the other takes minutes, and both give the same numbers to 1e-5. Neither is believed: a graph is run, read
whole and in parts, alone and in a batch, against the model that it was made of.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.export.types import StepError
from tunesmith.inference.abilities import depends_on_the_longest

OPSET = 18
"""Of the traced graph; the oldest that both exporters write."""
TOLERANCE = 1e-2
"""Largest difference of a log-probability between the graph and the model; a wrong mask or place moves some by tenths.
What is left of it is judged by whoever verifies the export."""
Exporter = Literal["tracing", "dynamo"]
INSTEAD = "export to merged, which runs in transformers and vLLM, or try onnx or gguf"
_CALLS = ((1, 1, 0), (1, 9, 0), (3, 1, 7), (2, 5, 6))
"""(batch, sequence, past) with which a graph is tried."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer remembers of a token: heads and width of its keys and of its values."""

    heads: int
    key: int
    value: int


@dataclass(frozen=True, slots=True)
class Traced:
    """A graph on disk, by which exporter it was made, and how far its log-probabilities are from the model's."""

    path: Path
    exporter: Exporter
    layers: tuple[Layer, ...]
    difference: float


class WithPast(nn.Module):
    """A causal model that takes and gives its keys and values as plain tensors, two for each layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, places: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        kept = [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (out.logits, *kept)


def trace(model: Any, folder: Path) -> Traced:
    """The graph of a causal `transformers` model in fp32, in `folder`, by the first exporter that gives its numbers.

    Raises `StepError` where none does, with the reason of each.
    """
    if depends_on_the_longest(model):
        raise StepError(
            "tracing to ONNX",
            "it turns positions by the length of the text, of which a traced graph knows one",
            INSTEAD,
        )
    layers = layers_of(model)
    reasons = []
    for exporter in ("tracing", "dynamo"):
        if exporter == "dynamo" and find_spec("onnxscript") is None:
            reasons.append("dynamo: the package onnxscript is not installed")
            continue
        path = folder / exporter / "model.onnx"
        path.parent.mkdir(parents=True)
        try:
            _export(model, layers, path, exporter)
            difference = largest_difference(model, layers, path)
        # An exporter refuses a model with whatever its own code, or the model's, happens to raise.
        except Exception as error:
            reasons.append(f"{exporter}: {_short(error)}")
            continue
        if difference <= TOLERANCE:
            return Traced(path, exporter, layers, difference)
        reasons.append(f"{exporter}: the graph gives other numbers than the model (by {difference:.1e})")
    raise StepError("tracing to ONNX", "; ".join(reasons), INSTEAD)


def layers_of(model: Any) -> tuple[Layer, ...]:
    """What each layer of a model remembers. Raises `StepError` where that is something else than keys and values."""
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([[0, 0]]), use_cache=True)
    kept = getattr(getattr(out, "past_key_values", None), "layers", None) or ()
    found = []
    for layer in kept:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not (isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.dim() == values.dim() == 4):
            raise StepError(
                "tracing to ONNX", f"a layer remembers no keys and values ({type(layer).__name__})", INSTEAD
            )
        found.append(Layer(keys.shape[1], keys.shape[3], values.shape[3]))
    if not found:
        raise StepError("tracing to ONNX", "the model gives nothing that it could go on from", INSTEAD)
    return tuple(found)


def names(layers: Sequence[Layer]) -> tuple[list[str], list[str]]:
    """Names of a graph's inputs and outputs, in order."""
    past = [f"past_key_values.{i}.{kind}" for i in range(len(layers)) for kind in ("key", "value")]
    present = [f"present.{i}.{kind}" for i in range(len(layers)) for kind in ("key", "value")]
    return ["input_ids", "attention_mask", "position_ids", *past], ["logits", *present]


def no_past(layers: Sequence[Layer], batch: int, length: int = 0) -> list[Tensor]:
    """Keys and values of `length` tokens, all zero."""
    return [torch.zeros(batch, one.heads, length, w) for one in layers for w in (one.key, one.value)]


def _export(model: Any, layers: Sequence[Layer], path: Path, exporter: Exporter) -> None:
    inputs, outputs = names(layers)
    batch, length, past = 2, 3, 4
    given = (
        torch.randint(0, vocabulary_of(model), (batch, length), generator=torch.Generator().manual_seed(0)),
        torch.ones(batch, past + length, dtype=torch.long),
        torch.arange(past, past + length).repeat(batch, 1),
        *no_past(layers, batch, past),
    )
    with quietly(), torch.inference_mode():
        if exporter == "tracing":
            two = {0: "batch", 1: "sequence"}
            free: dict[str, dict[int, str]] = dict.fromkeys(("input_ids", "position_ids", "logits"), two)
            free["attention_mask"] = {0: "batch", 1: "total"}
            free |= {name: {0: "batch", 2: "past"} for name in inputs[3:]}
            free |= {name: {0: "batch", 2: "total"} for name in outputs[1:]}
            torch.onnx.export(
                WithPast(model), given, path, input_names=inputs, output_names=outputs, dynamic_axes=free,
                opset_version=OPSET, dynamo=False,
            )  # fmt: skip
            return
        free_dim = torch.export.Dim.DYNAMIC
        rows = {0: free_dim, 1: free_dim}
        shapes = (rows, rows, rows, tuple({0: free_dim, 2: free_dim} for _ in inputs[3:]))
        torch.onnx.export(
            WithPast(model), given, path, input_names=inputs, output_names=outputs, dynamic_shapes=shapes,
            opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip


def largest_difference(model: Any, layers: Sequence[Layer], path: Path) -> float:
    """Of the log-probabilities that the graph in a file and the model give to the same tokens."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}
    inputs, outputs = names(layers)
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for batch, length, before in _CALLS:
        ids = torch.randint(0, vocabulary_of(model), (batch, before + length), generator=generator)
        with torch.inference_mode():
            expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)
        past = [one.numpy() for one in no_past(layers, batch)]
        for start, end in ((0, before), (before, before + length)):
            if start == end:
                continue
            places = np.arange(start, end, dtype=np.int64)[None].repeat(batch, 0)
            given = [ids[:, start:end].numpy(), np.ones((batch, end), dtype=np.int64), places, *past]
            feed = {name: value for name, value in zip(inputs, given, strict=True) if name in known}
            logits, *past = session.run(outputs, feed)
            got = torch.from_numpy(logits).log_softmax(-1)
            worst = max(worst, float((got - expected[:, start:end]).abs().max().nan_to_num(nan=float("inf"))))
    return worst


def vocabulary_of(model: Any) -> int:
    """Tokens that a model has embeddings of."""
    return int(model.get_input_embeddings().weight.shape[0])


@contextmanager
def quietly() -> Iterator[None]:
    """Exporters warn of every branch that depends on a shape; whether one matters is found out by running the graph.
    And they print all of a graph that they fail at, from below Python, where somebody's JSON is to come."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    sys.stdout.flush()
    output = os.dup(1)
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("wb") as nothing:
            warnings.simplefilter("ignore")
            os.dup2(nothing.fileno(), 1)
            yield
    finally:
        os.dup2(output, 1)
        os.close(output)
        log.setLevel(level)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
