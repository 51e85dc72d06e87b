"""Arithmetic that learning some documents cannot do without: what MFU is counted by.

For every weight of a matrix product and every token 2 operations forward, 2 for the gradient of the input where
something below learns, 2 for the weight's own where it learns: 6 per weight for full tuning, 4 for adapters on frozen
weights. The head counts at learnt tokens only. Attention of a document of L tokens counts the pairs it sees, L²/2 (or
L times the window): 4 operations per pair and number of a head forward, 8 backward. Padding, recomputation and merging
adapters are work, but not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models.quantized import QuantizedLinear
from tunesmith.models.trunk import decoder_layers, frozen_layers


def needed_flops(model: Any, documents: Sequence[int], supervised: int) -> float:
    """Floating-point operations of one forward and backward pass.

    Parameters
    ----------
    model: the `transformers` model as it is trained. documents: their lengths in tokens, shared beginnings counted
        once each time they are computed. supervised: tokens that are learnt.
    """
    trunk = getattr(model, model.base_model_prefix)
    layers = decoder_layers(trunk)
    frozen = frozen_layers(model, trunk)
    tokens = sum(documents)
    head = model.get_output_embeddings()
    share, width = _active_experts(model.config), _attention_width(model.config)
    total = supervised * sum(_per_token(module, True, 1.0) for module in head.modules())
    for index, layer in enumerate(layers):
        backward = index >= frozen
        total += tokens * sum(_per_token(module, backward, share) for module in layer.modules())
        pairs = sum(_pairs(length, _window(model.config, index)) for length in documents)
        total += (12 if backward else 4) * pairs * width
    return total


def _per_token(module: nn.Module, backward: bool, experts: float) -> float:
    """Operations per token in a module's own weights (not those of modules inside it)."""
    if isinstance(module, QuantizedLinear):
        return (4.0 if backward else 2.0) * module.in_features * module.out_features
    if isinstance(module, nn.Linear | Conv1D):
        return _operations(module.weight, backward)
    # Adapters hold their matrices as parameters, experts theirs as one of three dimensions.
    own: list[Any] = [p for p in module.parameters(recurse=False) if p.ndim in (2, 3)]
    if isinstance(module, nn.Embedding):
        return 0.0
    return sum(_operations(p, backward) * (experts if p.ndim == 3 else 1.0) for p in own)


def _operations(weight: Any, backward: bool) -> float:
    return float((2.0 + 2.0 * backward + 2.0 * weight.requires_grad) * weight.numel())


def _active_experts(config: Any) -> float:
    """Share of a mixture's experts that work on one token; 1 without a mixture."""
    text = config.get_text_config()
    there = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    return float(text.num_experts_per_tok) / there if there else 1.0


def _window(config: Any, index: int) -> int | None:
    """How far back the attention of a layer sees, or None for all."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and "sliding" not in kinds[index]:
        return None
    if kinds is None and not getattr(text, "use_sliding_window", True):
        return None
    window: int | None = getattr(text, "sliding_window", None)
    return window


def _pairs(length: int, window: int | None) -> float:
    """Pairs of a query and a key it sees, itself included."""
    seen = min(length, window or length)
    return seen * (seen + 1) / 2 + (length - seen) * seen


def _attention_width(config: Any) -> int:
    """Numbers of all query heads together."""
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(size) * int(text.num_attention_heads)
