"""The graph of a model that was tuned on pairs of texts: it places a text, and `embedding.onnx` says where.

    input_ids, attention_mask [batch, sequence] -> embedding [batch, hidden]

The mean of the last hidden states over a text's tokens, which is what training compares; texts are padded on the right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.export.onnx_plain.graph import INSTEAD, OPSET, quietly, vocabulary_of
from tunesmith.export.types import StepError

EMBEDDING = "embedding.onnx"
TOLERANCE = 1e-3
"""Largest difference of an embedding, as a share of its length."""
_LENGTHS = ((1,), (9,), (3, 12, 7))
"""Tokens of the texts with which a graph is tried, batch by batch."""
_STEP = "tracing the embedding to ONNX"


class MeanOfStates(nn.Module):
    """The trunk of a causal model and the mean over the tokens of each text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.trunk = model.base_model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        shares = mask.to(states.dtype) / mask.sum(1, keepdim=True)
        mean: Tensor = (states * shares[:, :, None]).sum(1)
        return mean


def trace_embedding(model: Any, path: Path) -> float:
    """Write the graph of a causal model's embedding; how far it is from the model's, as a share of its length.

    Raises `StepError` where the exporter refuses, or its graph gives other numbers.
    """
    pooled = MeanOfStates(model)
    given = torch.ones(2, 5, dtype=torch.long), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    rows = {0: "batch", 1: "sequence"}
    try:
        with quietly(), torch.inference_mode():
            torch.onnx.export(
                pooled, given, path, input_names=["input_ids", "attention_mask"], output_names=["embedding"],
                dynamic_axes={"input_ids": rows, "attention_mask": rows, "embedding": {0: "batch"}},
                opset_version=OPSET, dynamo=False,
            )  # fmt: skip
        difference = embedding_difference(model, path)
    # An exporter refuses a model with whatever its own code, or the model's, happens to raise.
    except Exception as error:
        raise StepError(_STEP, (str(error).strip().splitlines() or [type(error).__name__])[0][:300], INSTEAD) from error
    if not difference <= TOLERANCE:
        raise StepError(_STEP, f"the graph gives other numbers than the model (by {difference:.1e})", INSTEAD)
    return difference


def embedding_difference(model: Any, path: Path) -> float:
    """How far the embeddings of a graph are from the model's own for each text alone, as a share of their length."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator, worst = torch.Generator().manual_seed(2), 0.0
    for lengths in _LENGTHS:
        texts = [torch.randint(0, vocabulary_of(model), (length,), generator=generator) for length in lengths]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
        (got,) = session.run(["embedding"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        for text, one in zip(texts, got, strict=True):
            with torch.inference_mode():
                expected = model.base_model(input_ids=text[None], use_cache=False).last_hidden_state[0].mean(0).numpy()
            away = float(np.linalg.norm(one - expected) / max(float(np.linalg.norm(expected)), 1e-12))
            worst = max(worst, away if np.isfinite(away) else float("inf"))
    return worst
