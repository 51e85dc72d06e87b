"""The linear layers of a model that may be quantised, whatever class they are of, and the layers they lie in.

Only those inside decoder layers: embeddings, the head (tied or not), norms and classifiers stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import EngineError
from tunesmith.export.types import StepError
from tunesmith.models.trunk import decoder_layers

PACKED = 8
"""What both sides of a weight must be divisible by, as eight 4-bit codes are a word."""


@dataclass(frozen=True, slots=True)
class Block:
    """A decoder layer: its path, itself, and its linear layers by their path in the model."""

    path: str
    module: nn.Module
    linears: dict[str, Any]


def blocks_of(model: Any) -> list[Block]:
    """The decoder layers of a causal model, in order. Raises `StepError` where they cannot be told."""
    trunk = getattr(model, model.base_model_prefix)
    try:
        layers = decoder_layers(trunk)
    except EngineError as problem:
        raise StepError(
            "finding the decoder layers", problem.what, "export with --to merged, or --to onnx", where=problem.where
        ) from problem
    paths = {id(module): path for path, module in model.named_modules()}
    found = []
    for layer in layers:
        path = paths[id(layer)]
        inner = {
            f"{path}.{name}": module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and fits(module)
        }
        found.append(Block(path, layer, inner))
    if not any(block.linears for block in found):
        raise StepError(
            "finding linear layers",
            f"the decoder layers of {type(model).__name__} have none whose sizes are multiples of {PACKED}",
            "export with --to merged",
        )
    return found


def fits(module: nn.Linear | Conv1D) -> bool:
    """Whether a linear layer's codes fill whole words on both sides."""
    return all(size % PACKED == 0 for size in module.weight.shape)


def weight_of(module: Any) -> Tensor:
    """The weight [out, in], float32; of a `Conv1D`, which holds it the other way round, a view."""
    weight: Tensor = module.weight.detach().to(torch.float32)
    return weight.t() if isinstance(module, Conv1D) else weight


@torch.no_grad()
def set_weight(module: Any, weight: Tensor) -> None:
    """Put numbers [out, in] in place of a layer's weight."""
    module.weight.copy_(weight.t() if isinstance(module, Conv1D) else weight)


def group_size(model_blocks: list[Block]) -> int:
    """Inputs that share a scale: the largest of 128, 64, 32 and 16 that divides the inputs of every layer.

    Servers have kernels for these (for 16 slow ones only), and none for a shorter group at a row's end; 128 where none
    divides.
    """
    inputs = {weight_of(module).shape[1] for block in model_blocks for module in block.linears.values()}
    return next((size for size in (128, 64, 32, 16) if all(n % size == 0 for n in inputs)), 128)
