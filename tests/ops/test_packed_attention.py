"""Packed attention against attention computed one document at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tunesmith.errors import EngineError
from tunesmith.ops.packed_attention import packed_attention
from tunesmith.ops.packing import WASTE, Packing

LAYOUTS = {
    "one document": [9],
    "one token": [1],
    "only single tokens": [1, 1, 1],
    "ragged": [1, 3, 7, 12, 12, 20, 5, 9],
    "longest last": [2, 30],
    "giant beside short": [200, 3, 1, 4],
    "equal": [6, 6, 6],
}
Streams = tuple[Tensor, Tensor, Tensor]


def streams(total: int, heads: int = 4, shared: int = 2, width: int = 8, dtype: torch.dtype = torch.float64) -> Streams:
    """Random query [1, heads, total, width], key and value [1, shared, total, width], with gradients."""
    generator = torch.Generator().manual_seed(total)
    sizes = ((1, heads, total, width), (1, shared, total, width), (1, shared, total, width))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in sizes)
    return q, k, v


def by_document(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float,
    window: int | None = None, softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """The definition, written out: scores, mask, softmax, one document at a time. Returns [1, T, H, D]."""
    repeats = query.shape[1] // key.shape[1]
    out, start = [], 0
    for length in lengths:
        part = slice(start, start + length)
        q = query[:, :, part]
        k, v = (t[:, :, part].repeat_interleave(repeats, dim=1) for t in (key, value))
        scores = q @ k.transpose(-1, -2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        hidden = (distance < 0) | (distance >= (window or length))
        out.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v)
        start += length
    return torch.cat(out, dim=2).transpose(1, 2)


def agree(lengths: list[int], tensors: Streams, rtol: float = 1e-10, scale: float = 0.3, **options: object) -> None:
    """Outputs and gradients of both computations are the same."""
    theirs = tuple(t.detach().double().requires_grad_() for t in tensors)
    expected = by_document(*theirs, lengths, scale, options.get("sliding_window"), options.get("softcap"))  # type: ignore[arg-type]
    ours, weights = packed_attention(nn.Module(), *tensors, None, scaling=scale, packing=Packing.of(lengths), **options)  # type: ignore[arg-type]
    assert weights is None and ours.shape == expected.shape and ours.is_contiguous()
    torch.testing.assert_close(ours.double(), expected, rtol=rtol, atol=rtol)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected * direction).sum().backward()
    (ours * direction.to(ours.dtype)).sum().backward()
    for mine, other in zip(tensors, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=rtol, atol=10 * rtol)


@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(
    "options", [{}, {"sliding_window": 4}, {"softcap": 5.0}, {"sliding_window": 4, "softcap": 5.0}]
)
def test_equals_attention_by_document(lengths, options):
    agree(lengths, streams(sum(lengths)), **options)


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 1), (6, 3)])
def test_grouped_queries(heads, shared):
    agree([3, 8, 1, 5], streams(17, heads, shared))


def test_a_window_as_wide_as_a_document_is_none():
    agree([3, 8], streams(11), sliding_window=8)
    agree([3, 8], streams(11), sliding_window=7)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 4}, {"softcap": 5.0}])
def test_bf16_is_within_its_rounding(options):
    agree([1, 7, 40, 33, 12], streams(93, dtype=torch.bfloat16), rtol=0.03, **options)


def test_the_default_scale_is_that_of_the_head_width():
    q, k, v = streams(7)
    ours, _ = packed_attention(nn.Module(), q, k, v, None, packing=Packing.of([7]))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours, expected.transpose(1, 2))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_layout_places_every_token_once_and_wastes_little(lengths):
    packing = Packing.of(lengths)
    total = sum(lengths)
    source = torch.cat([r.source for r in packing.rectangles])
    assert len(packing.target.unique()) == total
    assert torch.equal(source[packing.target], torch.arange(total))
    for rectangle in packing.rectangles:
        # Row by row: the rectangle's places that no token of the stream calls its own.
        rows = rectangle.source.view(rectangle.count, rectangle.length)
        assert all(len(row.unique()) >= (1 - WASTE) * rectangle.length for row in rows)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    expected = torch.cat([torch.arange(n) for n in lengths])
    assert torch.equal(packing.positions[0], expected)
    for start, length in zip(starts, lengths, strict=True):
        inside = [
            ((r.source >= start) & (r.source < start + length)).view(r.count, r.length) for r in packing.rectangles
        ]
        assert sum(int(i.all(1).sum()) for i in inside) == 1  # one row of one rectangle is wholly this document
        assert sum(int(i.any(1).sum()) for i in inside) == 1  # and no other row has anything of it


@given(st.lists(st.integers(1, 24), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_any_layout_gives_attention_by_document(lengths):
    agree(lengths, streams(sum(lengths), heads=2, shared=1, width=4))


def test_a_layout_that_is_the_stream_itself_is_seen():
    assert Packing.of([6, 6, 6]).plain and Packing.of([9]).plain and Packing.of([20, 9, 2]).plain
    assert not Packing.of([2, 9]).plain
    assert not Packing.of([9, 8]).plain


def test_what_cannot_be_packed_is_refused():
    q, k, v = streams(5)
    packing = Packing.of([5])
    with pytest.raises(EngineError, match="did not receive the packing"):
        packed_attention(nn.Module(), q, k, v, None)
    with pytest.raises(EngineError, match="did not receive the packing"):
        packed_attention(nn.Module(), q, k, v, torch.zeros(1, 1, 5, 5), packing=packing)
    with pytest.raises(EngineError, match="s_aux"):
        packed_attention(nn.Module(), q, k, v, None, packing=packing, s_aux=torch.zeros(4))
    encoder = nn.Module()
    encoder.is_causal = False  # type: ignore[assignment]
    with pytest.raises(EngineError, match="only causal"):
        packed_attention(encoder, q, k, v, None, packing=packing)
