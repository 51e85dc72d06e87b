"""Attention over a stream of segments, some of which continue a prefix they share: forward, gradient, and reference.

A token of a suffix sees the whole prefix and its own past. The two are partial attentions (see `partial_attention`):
own pasts in rectangles of segments, and, per prefix, *one* product of all queries behind it with its keys, which exist
once for all of them. Both are joined by log-sum-exp, and backward each part is given the joined result. Only the
stream's own q, k, v and out are kept for the backward pass; padded copies are made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tunesmith.ops.packing import Packing, Rectangle, SharedPrefix
from tunesmith.ops.partial_attention import ScoreRule, Sight, attend, attend_backward, join

Places = Tensor | slice
"""Tokens of a stream, by index or as a run."""
EVERYTHING = Sight(everything=True)


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    rule: ScoreRule,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The plain form: each document alone, prefix included. q [T, H, D]; k, v [T, Hkv, D]; to [T, H, D]."""
    repeats = query.shape[1] // key.shape[1]
    out = []
    for prefix, own in packing.segments:
        document = torch.cat([torch.arange(part.start, part.stop, device=query.device) for part in (prefix, own)])
        q = query[document].transpose(0, 1)
        k, v = (t[document].transpose(0, 1).repeat_interleave(repeats, 0) for t in (key, value))
        scores = q @ k.transpose(1, 2) * rule.scale
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        places = torch.arange(len(document), device=query.device)
        distance = places[:, None] - places[None, :]
        hidden = (distance < 0) | (distance >= (len(document) if window is None else window))
        shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        answer = (torch.dropout(shares, dropout, True) @ v).transpose(0, 1)
        out.append(answer[prefix.stop - prefix.start :])  # a prefix is a segment of its own
    return torch.cat(out)


def stream_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: ScoreRule, window: int | None = None
) -> Tensor:
    """As `attention_reference` without dropout: q [T, H, D]; k, v [T, Hkv, D]; to [T, H, D]."""
    return _StreamAttention.apply(query, key, value, packing, rule, window)  # type: ignore[no-any-return, no-untyped-call]


class _StreamAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: ScoreRule, window: int | None
    ) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):  # dtypes are decided before
            q, k, v = _working(query, key, value)
            out, lse = _forward(q, k, v, packing, rule, window)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.options = packing, rule, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, lse = ctx.saved_tensors
        grad, query, key, value, out = _working(grad, *saved)
        dq, dk, dv = (g.to(saved[0].dtype) for g in _backward(grad, query, key, value, out, lse, *ctx.options))
        return dq, dk, dv, None, None, None


def _working(*streams: Tensor) -> list[Tensor]:
    """Half precision on a CPU is computed in fp32: its kernel for half was measured 2-3 times slower."""
    half = streams[0].device.type == "cpu" and streams[0].dtype in (torch.float16, torch.bfloat16)
    return [stream.float() if half else stream for stream in streams]


def _forward(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: ScoreRule, window: int | None
) -> tuple[Tensor, Tensor]:
    """`out` [T, H, D] and `lse` [T, H] of the whole stream."""
    outs, norms = [], []
    for rectangle, places in _own_places(packing):
        q, k, v = (_take(t, places, rectangle.count) for t in (query, key, value))
        out, lse = attend(q, k, v, rule, Sight(window=window))
        outs.append(out.transpose(1, 2).flatten(0, 1))
        norms.append(lse.transpose(1, 2).flatten(0, 1))
    whole = outs[0] if len(outs) == 1 else torch.cat(outs)
    norm = norms[0] if len(norms) == 1 else torch.cat(norms)
    if not packing.plain:
        whole, norm = whole.index_select(0, packing.target), norm.index_select(0, packing.target)
    whole = whole.contiguous()
    for prefix in packing.prefixes:
        part = _prefix_part(prefix, window, query.device)
        if part is None:
            continue
        queries, keys, sight = part
        q, k, v = _take(query, queries), _take(key, keys), _take(value, keys)
        out, lse = attend(q, k, v, rule, sight)
        rows, lse_rows = whole[queries], norm[queries]
        join(rows, lse_rows, out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1))
        if isinstance(queries, Tensor):  # what was taken by index is a copy
            whole[queries], norm[queries] = rows, lse_rows
    return whole, norm


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, packing: Packing,
    rule: ScoreRule, window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad = grad.contiguous()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    # A rectangle's padding repeats a real token, whose gradient must not count again.
    real = None if packing.plain else _real(packing)
    at = 0
    for rectangle, places in _own_places(packing):
        q, k, v, g, o = (_take(t, places, rectangle.count) for t in (query, key, value, grad, out))
        norm = _take_norm(lse, places, rectangle.count)
        if real is not None:
            kept = real[at : at + rectangle.count * rectangle.length].view(rectangle.count, 1, rectangle.length, 1)
            g = g * kept
        at += rectangle.count * rectangle.length
        gradients = attend_backward(g, q, k, v, o, norm, rule, Sight(window=window))
        parts.append(tuple(t.transpose(1, 2).flatten(0, 1) for t in gradients))  # type: ignore[arg-type]
    dq, dk, dv = (pieces[0] if len(pieces) == 1 else torch.cat(pieces) for pieces in zip(*parts, strict=True))
    if not packing.plain:
        dq, dk, dv = (t.index_select(0, packing.target) for t in (dq, dk, dv))
    for prefix in packing.prefixes:
        part = _prefix_part(prefix, window, query.device)
        if part is None:
            continue
        queries, keys, sight = part
        q, k, v, g, o = (
            _take(t, places)
            for t, places in ((query, queries), (key, keys), (value, keys), (grad, queries), (out, queries))
        )
        gradients = attend_backward(g, q, k, v, o, _take_norm(lse, queries), rule, sight)
        gq, gk, gv = (t[0].transpose(0, 1) for t in gradients)
        dq[queries] += gq
        dk[keys] += gk
        dv[keys] += gv
    return dq, dk, dv


def _own_places(packing: Packing) -> Iterator[tuple[Rectangle, Places]]:
    """Each rectangle with its tokens; in a plain stream these are runs, and nothing is copied."""
    at = 0
    for rectangle in packing.rectangles:
        size = rectangle.count * rectangle.length
        yield rectangle, slice(at, at + size) if packing.plain else rectangle.source
        at += size


def _prefix_part(prefix: SharedPrefix, window: int | None, device: torch.device) -> tuple[Places, slice, Sight] | None:
    """Which tokens behind a prefix see which of its keys, and how; None where a window keeps all from all."""
    if window is None or window >= prefix.length + max(prefix.suffixes):
        return prefix.queries, prefix.keys, EVERYTHING
    reach = window - 1  # the token at offset o of a suffix sees the prefix's last token if o + 1 < window
    if reach <= 0:
        return None
    start, queries, offsets = prefix.queries.start, [], []
    for length in prefix.suffixes:
        seeing = torch.arange(min(length, reach))
        offsets.append(seeing)
        queries.append(start + seeing)
        start += length
    first = max(0, prefix.length - reach)  # the first key that any of them sees
    keys = slice(prefix.start + first, prefix.start + prefix.length)
    distance = torch.cat(offsets) + (prefix.length - first)
    return torch.cat(queries).to(device), keys, Sight(window=window, offsets=distance.to(device))


def _real(packing: Packing) -> Tensor:
    """Which places of the rectangles end to end are tokens rather than padding, [R]."""
    size = sum(r.count * r.length for r in packing.rectangles)
    return torch.zeros(size, dtype=torch.bool, device=packing.target.device).index_fill_(0, packing.target, True)


def _take(stream: Tensor, places: Places, count: int = 1) -> Tensor:
    """Tokens of a stream [T, H, D] as [count, H, L, D]."""
    if isinstance(places, slice):
        taken = stream[places]
    elif stream.is_contiguous():
        taken = stream.index_select(0, places)
    else:  # head after head in memory, as `transformers` leaves it after rotating queries and keys
        taken = stream.transpose(0, 1).index_select(1, places).transpose(0, 1)
    return taken.view(count, -1, *taken.shape[1:]).transpose(1, 2)


def _take_norm(lse: Tensor, places: Places, count: int = 1) -> Tensor:
    """Tokens of a stream [T, H] as [count, H, L]."""
    taken = lse[places] if isinstance(places, slice) else lse.index_select(0, places)
    return taken.view(count, -1, taken.shape[1]).transpose(1, 2)
