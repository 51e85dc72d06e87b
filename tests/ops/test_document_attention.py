"""Attention by document against the plain form in float64, and against what it must not see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tunesmith.ops import pointwise_native
from tunesmith.ops.document_attention import can_attend, document_attention, document_attention_reference
from tunesmith.ops.packed_attention import Packing, packed_attention

needs_compiler = pytest.mark.skipif(pointwise_native.library() is None, reason=pointwise_native.reason())


def states(tokens: int, heads: int, key_heads: int, size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, tokens, size), (key_heads, tokens, size), (key_heads, tokens, size)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


@needs_compiler
@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize(
    ("lengths", "heads", "key_heads", "size"),
    [
        ((1, 3, 20, 61, 17, 64), 8, 4, 32),
        ((5, 33, 70), 9, 3, 64),
        ((90,), 4, 1, 16),
        ((1,), 2, 2, 16),
        ((16, 32, 15, 31), 2, 2, 48),
    ],
)
def test_equals_the_plain_form(lengths, heads, key_heads, size, window):
    given = states(sum(lengths), heads, key_heads, size)
    exact = [t.detach().double().requires_grad_() for t in given]
    ours = document_attention(*given, lengths, 0.3, window)
    plain = document_attention_reference(*exact, lengths, 0.3, window)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    mine = torch.autograd.grad((ours * direction).sum(), given)
    theirs = torch.autograd.grad((plain * direction.double()).sum(), exact)
    assert relative(ours, plain) < 1e-6
    for a, b in zip(mine, theirs, strict=True):
        if b.norm() < 1e-12:  # one key in sight: a softmax of one has no gradient
            assert not a.any()
        else:
            assert relative(a, b) < 3e-6


@needs_compiler
def test_equals_packed_attention():
    lengths = (12, 40, 1, 33)
    q, k, v = states(sum(lengths), 4, 2, 16)
    packed, _ = packed_attention(torch.nn.Module(), q[None], k[None], v[None], None, 0.2, packing=Packing.of(lengths))
    torch.testing.assert_close(document_attention(q, k, v, lengths, 0.2), packed.flatten(0, 1).flatten(1))


@needs_compiler
def test_documents_do_not_see_each_other_or_the_future():
    lengths = (20, 30)
    given = states(50, 4, 2, 16)
    before = document_attention(*given, lengths, 0.25)
    changed = [t.detach().clone() for t in given]
    for t in changed:
        t[:, 35:] += 1
    after = document_attention(*changed, lengths, 0.25)
    assert torch.equal(after[:35], before[:35]) and not torch.isclose(after[35:], before[35:]).all(1).any()
    grads = torch.autograd.grad(before[:20].sum(), given)
    assert all(not g[:, 20:].any() for g in grads)


@needs_compiler
def test_large_scores_stay_finite():
    q, k, v = (t.detach() * 200 for t in states(40, 2, 1, 16))
    plain = document_attention_reference(q.double(), k.double(), v.double(), (40,), 1.0)
    torch.testing.assert_close(document_attention(q, k, v, (40,), 1.0).double(), plain, rtol=1e-3, atol=1e-2)


@needs_compiler
def test_the_same_bits_with_any_number_of_threads():
    lengths, before, results = (33, 100, 7, 64), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            given = states(sum(lengths), 4, 2, 32)
            out = document_attention(*given, lengths, 0.2)
            results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_what_it_does_not_take(monkeypatch):
    assert not can_attend(torch.zeros(2, 4, 16, dtype=torch.float64))
    assert not can_attend(torch.zeros(2, 4, 24))
    monkeypatch.setattr(pointwise_native, "library", lambda: None)
    assert not can_attend(torch.zeros(2, 4, 16))
