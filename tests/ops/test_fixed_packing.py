"""Attention over streams of a fixed shape: what stands in tensors alone decides who sees whom."""

from __future__ import annotations

import pytest
import torch

from tunesmith.ops import varlen_attention
from tunesmith.ops.fixed_packing import FixedPacking, fixed_attention
from tunesmith.ops.packing import Packing, Runs
from tunesmith.ops.partial_attention import ScoreRule
from tunesmith.ops.prefix_attention import attention_reference


def fixed(lengths: list[int], documents: int, longest: int, device: str = "cpu") -> FixedPacking:
    """The layout of these documents, with empty ones up to `documents`."""
    starts = torch.full((documents + 1,), sum(lengths), dtype=torch.int32, device=device)
    starts[: len(lengths) + 1] = torch.tensor([0, *lengths]).cumsum(0)
    return FixedPacking(Packing.of(lengths, device).positions, Runs(None, starts, longest))


def states(tokens: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Queries, keys and values: 4 heads that share 2."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((tokens, 4, 8), (tokens, 2, 8), (tokens, 2, 8))
    return [torch.randn(s, generator=generator, dtype=dtype).to(device).requires_grad_() for s in sizes]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("lengths", [[1], [5, 1, 7, 1, 4], [11]])
def test_it_is_each_document_alone(lengths, softcap, window):
    rule = ScoreRule(0.3, softcap)
    mine, plain = states(sum(lengths)), states(sum(lengths))
    ours = fixed_attention(*mine, fixed(lengths, 8, 16), rule, window)
    theirs = attention_reference(*plain, Packing.of(lengths), rule, window)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours.backward(grad)
    theirs.backward(grad)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    for a, b in zip(mine, plain, strict=True):
        assert a.grad is not None and b.grad is not None
        assert b.grad.norm() > 0 or len(b) == 1  # a softmax over one key has no gradient
        assert torch.allclose(a.grad, b.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 3])
def test_the_kernels_take_empty_documents_and_a_longest_that_none_has(window):
    lengths = [5, 1, 70, 1, 51]
    rule = ScoreRule(0.3)
    mine, plain = (states(sum(lengths), "cuda", torch.bfloat16) for _ in "ab")
    packing = fixed(lengths, 16, 256, "cuda")
    ours = varlen_attention.varlen_attention(*mine, packing, rule, window)
    theirs = fixed_attention(*plain, packing, rule, window)
    ours.float().square().sum().backward()
    theirs.float().square().sum().backward()
    assert float((ours - theirs).float().norm() / theirs.float().norm()) < 1e-2
    for a, b in zip(mine, plain, strict=True):
        assert a.grad is not None and b.grad is not None
        assert float((a.grad - b.grad).float().norm() / b.grad.float().norm()) < 3e-2
