"""Head and loss chunk by chunk against all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tunesmith.ops import cross_entropy
from tunesmith.ops.cross_entropy import CHUNK, LogitRule, cross_entropy_reference, head_cross_entropy

RULES = [LogitRule(), LogitRule(scale=0.25), LogitRule(softcap=2.0), LogitRule(scale=3.0, softcap=2.0)]
Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]


def inputs(positions: int, bias: bool = True, width: int = 5, vocabulary: int = 11, dtype=torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(positions)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    hidden, weight = draw(positions, width).requires_grad_(), draw(vocabulary, width).requires_grad_()
    targets = torch.randint(0, vocabulary, (positions,), generator=generator)
    weights = torch.rand(positions, generator=generator, dtype=torch.float32)
    return hidden, weight, draw(vocabulary).requires_grad_() if bias else None, targets, weights


def agree(arguments: Inputs, rule: LogitRule, tolerance: float = 1e-10) -> None:
    wanted = [t for t in arguments[:3] if t is not None]
    ours = head_cross_entropy(*arguments, rule)
    theirs = cross_entropy_reference(*arguments, rule)
    assert ours.shape == () and ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    mine, others = (torch.autograd.grad(loss * 0.5, wanted) for loss in (ours, theirs))
    for a, b in zip(mine, others, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_all_logits_at_once(rule, bias):
    agree(inputs(7, bias), rule)


@pytest.mark.parametrize("positions", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunk_boundaries(positions):
    agree(inputs(positions), LogitRule())


def test_chunks_are_computed_apart(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 3)
    agree(inputs(10), LogitRule(scale=2.0, softcap=3.0))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_gradients_are_those_of_finite_differences(rule, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 3)
    hidden, weight, bias, targets, weights = inputs(4)
    assert bias is not None
    assert torch.autograd.gradcheck(
        lambda h, w, b: head_cross_entropy(h, w, b, targets, weights, rule), (hidden, weight, bias)
    )


def test_nothing_to_learn_is_zero_with_zero_gradients():
    hidden, weight, bias, targets, weights = inputs(0)
    loss = head_cross_entropy(hidden, weight, bias, targets, weights, LogitRule())
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert hidden.grad is not None and hidden.grad.shape == (0, 5)
    assert weight.grad is not None and not weight.grad.any()


def test_weights_count_and_zero_weights_do_not():
    hidden, weight, bias, targets, weights = inputs(6)
    muted = weights.clone()
    muted[2:] = 0
    whole = head_cross_entropy(hidden, weight, bias, targets, muted, LogitRule())
    part = head_cross_entropy(hidden[:2], weight, bias, targets[:2], weights[:2], LogitRule())
    torch.testing.assert_close(whole, part)
    doubled = head_cross_entropy(hidden, weight, bias, targets, 2 * weights, LogitRule())
    torch.testing.assert_close(doubled, 2 * head_cross_entropy(hidden, weight, bias, targets, weights, LogitRule()))


def test_a_frozen_head_gets_no_gradient_and_no_memory():
    hidden, weight, _, targets, weights = inputs(6, bias=False)
    weight.requires_grad_(False)
    head_cross_entropy(hidden, weight, None, targets, weights, LogitRule()).backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert not head_cross_entropy(hidden, weight, None, targets, weights, LogitRule()).requires_grad


def test_bf16_logits_are_summed_in_fp32():
    arguments = inputs(CHUNK + 9, width=16, dtype=torch.bfloat16)
    ours = head_cross_entropy(*arguments, LogitRule())
    assert ours.dtype == torch.float32
    agree(arguments, LogitRule(), tolerance=0.05)


def test_large_logits_do_not_overflow():
    hidden, weight, _, targets, weights = inputs(4, bias=False, dtype=torch.float32)
    loss = head_cross_entropy(hidden * 1e4, weight * 1e4, None, targets, weights, LogitRule())
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(weight.grad).all()
