"""Attention over a flat stream of documents that never see each other.

A batch is one row of `T` tokens, document after document, without padding. For the attention alone, documents of
similar length are laid side by side in a small rectangle, padded on the right. Because attention is causal, what stands
to the right of a token cannot reach it: the rectangle needs no mask, its padding changes nothing, and it is dropped
on the way back. The cost is the padded corner of each rectangle (at most `WASTE` of it by construction) instead of the
`T x T` mask of a naive packed row; the gain over one call per document is far fewer, larger calls.

`transformers` models reach this through their attention registry under the name `ATTENTION`; the layout of the stream
travels as the keyword `packing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.errors import EngineError

ATTENTION = "tunesmith_packed"
WASTE = 0.25
"""Largest share of a document's rectangle row that may be padding."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """`count` documents side by side, `length` tokens wide. `source` [count*length] points into the stream."""

    source: Tensor
    count: int
    length: int


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each document of a stream lies, and how documents are grouped for attention.

    `target` [T]: the place of each stream token in the concatenated rectangles. `positions` [1, T]: position in its
    document. `plain`: the rectangles laid end to end are the stream itself.
    """

    rectangles: tuple[Rectangle, ...]
    target: Tensor
    positions: Tensor
    plain: bool

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Packing:
        """The packing of documents of these lengths, in stream order."""
        starts, total = [], 0
        for length in lengths:
            starts.append(total)
            total += length
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        groups: list[list[int]] = []
        for i in order:
            if groups and lengths[i] >= (1 - WASTE) * lengths[groups[-1][0]]:
                groups[-1].append(i)
            else:
                groups.append([i])
        rectangles, offset = [], 0
        target = torch.empty(total, dtype=torch.long)
        for group in groups:
            width = lengths[group[0]]
            columns = torch.arange(width)
            sizes = torch.tensor([lengths[i] for i in group])
            begins = torch.tensor([starts[i] for i in group])
            # Padding repeats the document's own last token, so that no document ever touches another's values.
            source = begins[:, None] + torch.minimum(columns[None, :], sizes[:, None] - 1)
            real = columns[None, :] < sizes[:, None]
            places = offset + torch.arange(len(group) * width).view(len(group), width)
            target[source[real]] = places[real]
            rectangles.append(Rectangle(source.flatten().to(device), len(group), width))
            offset += len(group) * width
        positions = torch.cat([torch.arange(length) for length in lengths])[None, :]
        plain = offset == total and bool((target == torch.arange(total)).all())
        return cls(tuple(rectangles), target.to(device), positions.to(device), plain)


class _Spread(torch.autograd.Function):
    """Stream [H, T, D] to the concatenated rectangles [H, R, D]; every stream token has exactly one real place."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(target)
        return stream.index_select(1, source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (target,) = ctx.saved_tensors
        # Padding gets no gradient: causal attention never lets it reach a kept token.
        return grad.index_select(1, target), None, None


class _Gather(torch.autograd.Function):
    """Concatenated rectangles [H, R, D] back to the stream [H, T, D], padding dropped."""

    @staticmethod
    def forward(ctx: Any, rectangles: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(target)
        ctx.width = rectangles.shape[1]
        return rectangles.index_select(1, target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (target,) = ctx.saved_tensors
        spread = grad.new_zeros(grad.shape[0], ctx.width, grad.shape[2])
        spread.index_copy_(1, target, grad)
        return spread, None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention of a rectangle: [N, H, L, D] from queries and as many (already expanded) keys and values."""
    length = query.shape[2]
    window = sliding_window if sliding_window is not None and sliding_window < length else None
    if softcap is None and window is None and not _matmul_is_faster(query):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, dropout_p=dropout)
    places = torch.arange(length, device=query.device)
    distance = places[:, None] - places[None, :]
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    if softcap is None and window is not None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, dropout_p=dropout)
    count = query.shape[0] * query.shape[1]
    hidden = torch.zeros(length, length, dtype=query.dtype, device=query.device).masked_fill_(~seen, float("-inf"))
    keys = key.flatten(0, 1).transpose(1, 2)
    if softcap is None:
        scores = torch.baddbmm(hidden.expand(count, length, length), query.flatten(0, 1), keys, alpha=scaling)
    else:
        scores = softcap * torch.tanh(torch.bmm(query.flatten(0, 1), keys) * (scaling / softcap)) + hidden
    weights = F.dropout(scores.softmax(-1), dropout).to(value.dtype)
    return torch.bmm(weights, value.flatten(0, 1)).view(*query.shape[:3], value.shape[3])


def _matmul_is_faster(query: Tensor) -> bool:
    """Half-precision products on a CPU: its fused kernel works in fp32 inside and was measured 2-3 times slower."""
    if query.device.type != "cpu" or query.shape[2] > 1024:
        return False
    return torch.is_autocast_enabled("cpu") or query.dtype in (torch.bfloat16, torch.float16)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function `transformers` calls: `query` [1, H, T, D], `key`, `value` [1, Hkv, T, D] to [1, T, H, D]."""
    if packing is None or attention_mask is not None:
        raise EngineError(
            "this model's attention did not receive the packing of the token stream",
            where=type(module).__name__,
            fix="the architecture rebuilds its own masks; it cannot be trained on packed streams yet",
        )
    for name in ("s_aux", "position_bias"):
        if others.get(name) is not None:
            raise EngineError(f"attention with {name} cannot be packed yet", where=type(module).__name__)
    if not getattr(module, "is_causal", True):
        raise EngineError("only causal attention can be packed", where=type(module).__name__)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    repeats = query.shape[1] // key.shape[1]
    out = []
    if packing.plain:
        spread = [query[0], key[0], value[0]]
    else:
        source = torch.cat([r.source for r in packing.rectangles])
        spread = [
            _Spread.apply(t[0], source, packing.target)  # type: ignore[no-untyped-call]
            for t in (query, key, value)
        ]
    offset = 0
    for rectangle in packing.rectangles:
        size = rectangle.count * rectangle.length
        q, k, v = (
            t[:, offset : offset + size].view(-1, rectangle.count, rectangle.length, t.shape[2]).transpose(0, 1)
            for t in spread
        )
        offset += size
        if repeats > 1:
            k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
        answer = attend(
            q, k, v, scaling=scale, dropout=dropout, sliding_window=sliding_window, softcap=softcap
        )  # [N, H, L, D]
        out.append(answer.transpose(0, 1).flatten(1, 2))
    joined = out[0] if len(out) == 1 else torch.cat(out, dim=1)  # [H, R, D]
    if not packing.plain:
        joined = _Gather.apply(joined, packing.target)  # type: ignore[no-untyped-call]
    return joined.transpose(0, 1).unsqueeze(0).contiguous(), None


def register() -> None:
    """Make the attention known to `transformers` under `ATTENTION` (its official registry; nothing is overwritten)."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)
