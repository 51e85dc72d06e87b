"""Attention of many rows to a beginning they share, whose keys and values exist once for all of them.

A row sees the whole beginning and its own past. These are two partial attentions (`ops.partial_attention`), joined by
log-sum-exp: one over the row's own keys, and one product of the queries of *all* rows with the keys of the beginning.
Nothing of the beginning is copied for a row, neither at the start nor at every further token.

`transformers` reaches it through its attention registry under the name `ATTENTION`; the beginning travels as the
keyword `prefix`. It serves models whose attention is torch's own, on a CPU, without windows and soft caps; whether it
gives a model's own results is measured before it is used (`TorchEngine`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import EngineError
from tunesmith.ops.partial_attention import join

ATTENTION = "tunesmith_behind_prefix"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of a beginning, [1, Hkv, P, D] each, by layer."""

    layers: tuple[tuple[Tensor, Tensor], ...]


def attention_behind(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function `transformers` calls: `query` [B, H, L, D], `key`, `value` [B, Hkv, S, D] to [B, L, H, D].

    `attention_mask` [B, 1, L, S] is added to the scores of the row's own keys; every query must see one of them.
    """
    refused = any(others.get(name) is not None for name in _REFUSED) or value.shape[-1] != query.shape[-1]
    if prefix is None or attention_mask is None or refused:
        raise EngineError("this model's attention cannot share a beginning", where=type(module).__name__)
    rows, heads, length, size = query.shape
    scale = scaling if scaling is not None else size**-0.5
    out, lse = _flash(query, key, value, 0.0, False, attn_mask=attention_mask, scale=scale)
    keys, values = prefix.layers[module.layer_idx]  # type: ignore[index]
    groups = keys.shape[1]
    together = query.reshape(rows, groups, -1, size).transpose(0, 1).reshape(1, groups, -1, size)
    seen, seen_lse = _flash(together, keys, values, 0.0, False, scale=scale)
    seen = seen.reshape(groups, rows, -1, size).transpose(0, 1).reshape(rows, heads, length, size)
    seen_lse = seen_lse.reshape(groups, rows, -1).transpose(0, 1).reshape(rows, heads, length)
    join(out, lse, seen, seen_lse)
    return out.transpose(1, 2).contiguous(), None


_REFUSED = ("softcap", "s_aux", "position_bias", "sliding_window")


@contextmanager
def attending_behind(model: Any) -> Iterator[None]:
    """Within it, the model's attention is `attention_behind`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attention_behind)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def own_mask(seen: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of the last `length` tokens of rows, [B, 1, length, S]; seen [B, S], 0 for padding.

    A token sees what is `seen` up to itself, and in any case itself, as padding has nothing else to see.
    """
    size = seen.shape[1]
    places = torch.arange(size, device=seen.device)
    own = places[size - length :, None]
    allowed = (seen.bool()[:, None, :] & (places <= own)) | (places == own)
    return torch.zeros(allowed.shape, dtype=dtype, device=seen.device).masked_fill_(~allowed, torch.finfo(dtype).min)[
        :, None
    ]
