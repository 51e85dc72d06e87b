"""Attention over a stream in half precision on CUDA, by the flash kernels that come with torch.

They take documents of any lengths end to end (`cumulative` [S+1] int32 says where each begins) and grouped key heads as
they are, so nothing is padded or copied. Suffixes of a shared prefix are two calls, their own pasts and the prefix,
joined as in `partial_attention`; the prefix's keys exist once for all that continue it. Under a sliding window shorter
than a document, a suffix's part of the prefix moves with every token; there each suffix is given a copy of the few
keys it can reach, and one windowed call does both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.ops.fixed_packing import AnyPacking, FixedPacking
from tunesmith.ops.packing import Packing, Runs
from tunesmith.ops.partial_attention import ScoreRule, join


def usable(query: Tensor, rule: ScoreRule) -> bool:
    """Whether these kernels can compute it: CUDA, half precision, no soft cap, heads of up to 256 in eights."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16) or rule.softcap is not None:
        return False
    return query.shape[-1] <= 256 and query.shape[-1] % 8 == 0


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: AnyPacking, rule: ScoreRule, window: int | None = None
) -> Tensor:
    """As `prefix_attention.attention_reference`: q [T, H, D]; k, v [T, Hkv, D]; to [T, H, D]."""
    query, key, value = (t.contiguous() for t in (query, key, value))
    if isinstance(packing, FixedPacking) or packing.crossing is None:
        return _segments(query, key, value, packing.runs, packing.runs, rule, window)
    if window is not None:
        keys = _reachable(packing, window, query.device)
        return _segments(query, key[keys.places], value[keys.places], packing.runs, keys, rule, window)
    return _SharedPrefixes.apply(query, key, value, packing, rule)  # type: ignore[no-any-return, no-untyped-call]


def _segments(
    query: Tensor, key: Tensor, value: Tensor, queries: Runs, keys: Runs, rule: ScoreRule, window: int | None
) -> Tensor:
    """Causal attention of runs of queries, each run at the end of its run of keys."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(  # type: ignore[return-value]
        query, key, value, queries.starts, keys.starts, queries.longest, keys.longest, scale=rule.scale,
        window_size=(-1 if window is None else window - 1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def _reachable(packing: Packing, window: int, device: torch.device) -> Runs:
    """Per segment, the last `window - 1` places of the prefix it continues, then its own."""
    places, lengths = [], []
    for prefix, own in packing.segments:
        first = max(prefix.start, prefix.stop - (window - 1))
        places += [torch.arange(first, prefix.stop), torch.arange(own.start, own.stop)]
        lengths.append(prefix.stop - first + own.stop - own.start)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)
    return Runs(torch.cat(places).to(device), starts, max(lengths))


class _SharedPrefixes(torch.autograd.Function):
    """Own pasts and prefixes, joined; backward, each call is given the joined output and log-sum-exp.

    `aten._flash_attention_forward` returns `lse` [H, T] in fp32; seed and offset of its dropout are not used.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: ScoreRule) -> Tensor:
        assert packing.crossing is not None
        queries, keys = packing.crossing
        out, lse, *random = _forward(query, key, value, packing.runs, packing.runs, rule, causal=True)
        part = query[queries.places], key[keys.places], value[keys.places]
        other, other_lse, *_ = _forward(*part, queries, keys, rule, causal=False)
        rows, norms = out[queries.places].float(), lse.t()[queries.places]
        join(rows, norms, other, other_lse.t())
        out[queries.places] = rows.to(out.dtype)
        lse[:, queries.places] = norms.t()
        ctx.save_for_backward(query, key, value, out, lse, *random)
        ctx.options = packing, rule
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, *random = ctx.saved_tensors
        packing, rule = ctx.options
        queries, keys = packing.crossing
        grad = grad.contiguous()
        dq, dk, dv = _backward(grad, query, key, value, out, lse, packing.runs, packing.runs, random, rule, causal=True)
        there, theirs = queries.places, keys.places
        gq, gk, gv = _backward(
            grad[there], query[there], key[theirs], value[theirs], out[there], lse[:, there].contiguous(),
            queries, keys, random, rule, causal=False,
        )  # fmt: skip
        dq.index_add_(0, there, gq)  # places are distinct, so the order of additions is fixed
        dk.index_add_(0, theirs, gk)
        dv.index_add_(0, theirs, gv)
        return dq, dk, dv, None, None


def _forward(
    query: Tensor, key: Tensor, value: Tensor, queries: Runs, keys: Runs, rule: ScoreRule, *, causal: bool
) -> tuple[Tensor, ...]:
    """`out` [T, H, D], `lse` [H, T], and what the kernel wants back for its (unused) dropout."""
    out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
        query, key, value, queries.starts, keys.starts, queries.longest, keys.longest, 0.0, causal, False,
        scale=rule.scale,
    )  # fmt: skip
    return out, lse, seed, offset


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, queries: Runs, keys: Runs,
    random: Sequence[Tensor], rule: ScoreRule, *, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.ops.aten._flash_attention_backward(  # type: ignore[no-any-return]
        grad, query, key, value, out, lse, queries.starts, keys.starts, queries.longest, keys.longest, 0.0, causal,
        *random, scale=rule.scale,
    )  # fmt: skip
