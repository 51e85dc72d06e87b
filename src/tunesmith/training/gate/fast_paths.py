"""Which fast paths a base takes on a machine, and why not where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import use_fused_layers
from tunesmith.models.trunk import decoder_layers
from tunesmith.ops import fp8, pointwise_native, varlen_attention
from tunesmith.ops.document_attention import can_attend
from tunesmith.ops.partial_attention import ScoreRule
from tunesmith.ops.product import FastLinear, use_fast_linears
from tunesmith.training.gate.machine import installed
from tunesmith.training.precision import choose_precision


@dataclass(frozen=True, slots=True)
class FastPath:
    """Whether it is taken, and what that means or why not."""

    name: str
    used: bool
    detail: str


def fast_paths(model: Any, rates: Mapping[str, float]) -> tuple[FastPath, ...]:
    """Of a `transformers` model on its device, in its type; fused layers and products are put into it.

    `rates`: measured operations per second by type (`calibration.measured_rates`).
    """
    use_fast_linears(model)
    layers = decoder_layers(LanguageModel(model).trunk)
    names = [type(layer).__name__ for layer in layers]
    fused = use_fused_layers(model)
    language_model = LanguageModel(model)
    return (
        _products(model),
        _fused(model, len(fused), names),
        _native(),
        _attention(model, bool(fused)),
        _adapters(model),
        _head(language_model),
        _prefixes(language_model),
        _graphs(model),
        _precision(model.device, rates),
        _eighths(model.device),
        _quantisation(model.device),
    )


def _products(model: nn.Module) -> FastPath:
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    fast = sum(isinstance(m, FastLinear) for m in linears)
    if fast:
        return FastPath("products by oneDNN", True, f"{fast} of {len(linears)} linear layers")
    if not linears:
        return FastPath("products by oneDNN", False, "the base has no nn.Linear (GPT-2's Conv1D is another class)")
    weight = linears[0].weight
    if weight.device.type != "cpu":
        return FastPath("products by oneDNN", False, "on a CPU only; on a GPU they are the vendor's library")
    why = "in fp32 only" if weight.dtype != torch.float32 else "this build of torch has none"
    return FastPath("products by oneDNN", False, why)


def _fused(model: Any, count: int, names: Sequence[str]) -> FastPath:
    told = f"{count} of {len(names)} layers of the cut replaced"
    if count:
        return FastPath("fused decoder layers", True, told)
    if model.device.type != "cpu":
        return FastPath("fused decoder layers", False, "on a CPU only")
    if model.dtype not in (torch.float32, torch.float64):
        return FastPath("fused decoder layers", False, "not in half precision")
    kinds = ", ".join(sorted(set(names)))
    return FastPath("fused decoder layers", False, f"{told}: {kinds} is none of the kinds whose computation is known")


def _native() -> FastPath:
    used = pointwise_native.library() is not None
    return FastPath("norms, heads and activation in C", used, pointwise_native.reason())


def _attention(model: Any, fused: bool) -> FastPath:
    text = model.config.get_text_config()
    heads = int(text.num_attention_heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    cap = getattr(text, "attn_logit_softcapping", None)
    query = torch.zeros(1, 1, size, dtype=model.dtype, device=model.device)
    name = "attention without padding"
    if varlen_attention.usable(query, ScoreRule(1.0, cap)):
        return FastPath(name, True, "torch's flash kernels for documents of any lengths")
    if fused and can_attend(query):
        return FastPath(name, True, "each document in place, in C; shared prefixes by torch's CPU kernel")
    how = f"heads of {size}" if size % 16 else "layers that are not fused"
    if cap is not None:
        return FastPath(name, True, "documents side by side, by plain products: a soft cap has no kernel")
    if model.device.type == "cpu":
        return FastPath(name, True, f"documents side by side, by torch's CPU kernel ({how} do not use the one in C)")
    return FastPath(name, True, "documents side by side, by plain products (flash kernels want half precision)")


def _adapters(model: Any) -> FastPath:
    name = "adapters merged into one product"
    if model.dtype in (torch.float32, torch.float64):
        return FastPath(name, True, "with dropout 0, LoRA and DoRA")
    return FastPath(name, False, "half precision would round the update away: products of their own")


def _head(model: LanguageModel) -> FastPath:
    rule = model.rule
    told = "a chunk of positions at a time, gradients on the way"
    if rule.softcap is not None:
        told += f", soft cap {rule.softcap:g}"
    if rule.scale != 1.0:
        told += f", logits times {rule.scale:g}"
    return FastPath("head where something is supervised", True, told)


def _prefixes(model: LanguageModel) -> FastPath:
    name = "common beginnings computed once"
    if model.draws_chance:
        return FastPath(name, False, "the base has dropout: each document draws its own")
    return FastPath(name, True, "from 16 tokens on; off with dropout or noise")


def _graphs(model: Any) -> FastPath:
    name = "micro-batches as CUDA graphs"
    if model.device.type != "cuda":
        return FastPath(name, False, "this device has no graphs")
    return FastPath(name, False, "only when asked for (train.cuda_graphs: on), each compared with a plain step first")


def _eighths(device: torch.device) -> FastPath:
    reason = fp8.why_not(device)
    return FastPath("8-bit floats", False, reason or "only when asked for (train.precision: fp8)")


def _precision(device: torch.device, rates: Mapping[str, float]) -> FastPath:
    chosen, reason = choose_precision(device, rates)
    return FastPath("half precision", chosen != "fp32", reason)


def _quantisation(device: torch.device) -> FastPath:
    found = installed("bitsandbytes")
    name = "quantised weights by bitsandbytes"
    if device.type != "cuda":
        return FastPath(name, False, "on a GPU only; on a CPU our own look-up dequantises NF4 and int8")
    if found is None:
        return FastPath(name, False, "not installed (pip install bitsandbytes); our own look-up does it")
    return FastPath(name, True, f"version {found}")
