"""Merging in memory: what was trained goes into the weights of a loaded base.

The way for every method, whatever files the base came in; `stream` needs far less memory where it can be used.

Sums are computed in at least 32 bits and end in the base's own dtype. Quantised weights become the numbers they stand
for, which are the ones that were trained on: an adapter trained on NF4 weights belongs to these, not to the base's own.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import EngineError
from tunesmith.models.lora import Attached
from tunesmith.models.methods import LoraTuning, Tuning, WithCard
from tunesmith.models.peft_method import PeftTuning
from tunesmith.models.quantized import dequantize_base

# What `peft` raises for layers that cannot be merged: there is no common ancestor but Exception.
_FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)


@torch.no_grad()
def merge(model: Any, tuning: Tuning, dtype: torch.dtype) -> None:
    """Make of a tuned base (`load_tuned`) a plain `transformers` model of this dtype, in place.

    A head that shared its weight with the embeddings and was adapted, or trained beside them, gets its own.
    Raises `EngineError` for a method that is no change of weights.
    """
    refuse_merging(tuning.kind)
    if isinstance(tuning, LoraTuning):
        _merge_lora(model, tuning.attached, dtype)
    elif isinstance(tuning, WithCard) and isinstance(tuning.tuning, PeftTuning):
        _merge_peft(model, tuning.tuning, dtype)
    dequantize_base(model)
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False  # else saving would drop the head, and loading tie it


def refuse_merging(kind: str) -> None:
    """Raise `EngineError` for a kind of tuning that no weights can hold."""
    if kind == "bottleneck":
        raise EngineError(
            "bottleneck adapters cannot be merged into the base's weights: there is a non-linearity between them",
            where="method.type: bottleneck",
            expected="adapter",
            fix="keep base and adapters beside each other, or tune with method.type: lora",
        )


def _merge_lora(model: Any, attached: Attached, dtype: torch.dtype) -> None:
    """Put `W + s B A` (with DoRA, its rows rescaled) in place of every adapted layer."""
    for path, layer in attached.layers.items():
        weight = layer.merged_weight.detach()
        plain = layer.base.linear() if layer.quantized else layer.base
        weight = weight.t().contiguous() if isinstance(plain, Conv1D) else weight
        # A new tensor and not the old one's memory: the embeddings may share that.
        plain.weight = nn.Parameter(weight, requires_grad=False)
        model.set_submodule(path, plain)
    for module in attached.saved.values():
        module.to(dtype)


def _merge_peft(model: Any, tuning: PeftTuning, dtype: torch.dtype) -> None:
    """Have `peft` merge its layers, in at least 32 bits."""
    if dtype in (torch.bfloat16, torch.float16):
        model.float()
    _part_adapted_ends(model)
    name = tuning.config.peft_type.value
    try:
        tuning.wrapper.merge_and_unload(safe_merge=True)
    except _FAILURES as error:
        raise EngineError(
            f"the peft library cannot merge {name} into the base's weights: {error or type(error).__name__}",
            where="method.peft_type",
            expected="adapter",
            fix="keep base and adapter beside each other",
        ) from error
    model.to(dtype)


def _part_adapted_ends(model: Any) -> None:
    """Give head and embeddings that share one weight two, where one is adapted: it would be merged into both."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    holders = [end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends]
    if holders[0].weight is holders[1].weight and any(isinstance(end, BaseTunerLayer) for end in ends):
        holders[1].weight = nn.Parameter(holders[1].weight.detach().clone(), requires_grad=False)
