"""Causal attention of each document of a flat stream with itself, without moving the stream into rectangles.

For tokens i ≥ j of a document (and i - j < window): `p_ij = softmax_j(s · q_i·k_j)`, `o_i = Σ_j p_ij v_j`. Backward,
with `D_i = do_i·o_i`: `dv_j = Σ_i p_ij do_i`, `dz_ij = p_ij (do_i·v_j - D_i)`, `dq_i = s Σ_j dz_ij k_j` and
`dk_j = s Σ_i dz_ij q_i` (as in arXiv 2205.14135). Only q, k, v, o and one number per query are kept; heads of keys are
not repeated for their queries. Small documents on a CPU are what it is for: there are no masks, copies or padding.

The form in C (`document_attention.c`) is fp32 only; `document_attention_reference` is the plain one for any dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ops import pointwise_native

_LANES = 16
"""A head's size must be a multiple of this."""


def can_attend(query: Tensor) -> bool:
    """Whether `document_attention` takes these queries [Hq, T, D]: the C form is there, fp32, and the size fits."""
    fits = query.dtype == torch.float32 and query.device.type == "cpu" and query.shape[-1] % _LANES == 0
    return fits and pointwise_native.library() is not None


def document_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scaling: float, window: int | None = None
) -> Tensor:
    """As `document_attention`, a document at a time by plain torch, for any dtype."""
    repeats = query.shape[0] // key.shape[0]
    out = []
    for q, k, v in zip(*(torch.split(t, list(lengths), dim=1) for t in (query, key, value)), strict=True):
        k, v = (t.repeat_interleave(repeats, dim=0) for t in (k, v))
        places = torch.arange(q.shape[1], device=q.device)
        distance = places[:, None] - places[None, :]
        seen = (distance >= 0) & (distance < (window or len(places)))
        out.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling))
    return torch.cat(out, dim=1).transpose(0, 1).flatten(1)


def document_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scaling: float, window: int | None = None
) -> Tensor:
    """What attention gives, [T, Hq D], for `query` [Hq, T, D], `key` and `value` [Hkv, T, D] where `can_attend`.

    `lengths`: tokens of each document, in stream order, together T. `scaling` is positive.
    """
    return _DocumentAttention.apply(query, key, value, tuple(lengths), scaling, window or 0)  # type: ignore[no-any-return, no-untyped-call]


class _DocumentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scaling: float, window: int
    ) -> Tensor:
        q, k, v = (t.contiguous() for t in (query, key, value))
        heads, tokens, size = q.shape
        out, log_sum = q.new_empty(tokens, heads * size), q.new_empty(heads, tokens)
        starts = torch.tensor([0, *itertools.accumulate(lengths)])
        sizes = (len(lengths), heads, len(k), tokens, size)
        failed = _functions().attend_documents(*_at(q, k, v, starts), *sizes, scaling, window, *_at(out, log_sum))
        _check(failed)
        ctx.save_for_backward(q, k, v, out, log_sum, starts)
        ctx.given = sizes, scaling, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sum, starts = ctx.saved_tensors
        sizes, scaling, window = ctx.given
        d_out = grad.contiguous()
        d = [torch.empty_like(t) for t in (q, k, v)]
        failed = _functions().attend_documents_backward(
            *_at(d_out, q, k, v, out, log_sum, starts), *sizes, scaling, window, *_at(*d)
        )
        _check(failed)
        return d[0], d[1], d[2], None, None, None


def _functions() -> Any:
    library = pointwise_native.library()
    assert library is not None, "asked for without can_attend"
    return library


def _at(*tensors: Tensor) -> list[int]:
    return [t.data_ptr() for t in tensors]


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the scores of attention")
