"""Smoothing, z-loss, distillation and functions of one's own: chunk by chunk equals all logits at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.test_cross_entropy import RULES, Inputs, inputs
from tunesmith.ops import token_loss
from tunesmith.ops.cross_entropy import LogitRule, cross_entropy_reference
from tunesmith.ops.token_loss import (
    CHUNK,
    Chunk,
    CountedLoss,
    FunctionLoss,
    Teacher,
    TokenLoss,
    head_loss,
    token_loss_reference,
)

V = 11
NUMBERS = ("hidden", "weight", "bias")


def teacher(positions: int, share: float = 0.3, temperature: float = 2.0, rows: int = V, compared: int | None = None):
    generator = torch.Generator().manual_seed(99)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    rule = LogitRule(scale=0.7, softcap=4.0)
    return Teacher(draw(positions, 7), draw(rows, 7), draw(rows), rule, share, temperature, compared)


def losses(positions: int) -> dict[str, TokenLoss]:
    return {
        "smoothing": TokenLoss(label_smoothing=0.1),
        "z": TokenLoss(z_loss=1e-2),
        "both": TokenLoss(label_smoothing=0.2, z_loss=0.1),
        "teacher": TokenLoss(teacher=teacher(positions)),
        "only the teacher": TokenLoss(teacher=teacher(positions, share=1.0, temperature=1.0)),
        "larger teacher head": TokenLoss(teacher=teacher(positions, rows=V + 3, compared=V - 2)),
        "everything": TokenLoss(0.1, 0.05, teacher(positions, rows=V + 3, compared=V)),
    }


def relative(ours: Tensor, theirs: Tensor) -> float:
    if not theirs.any():
        return 0.0 if not ours.any() else float("inf")
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def agree(arguments: Inputs, rule: LogitRule, loss: TokenLoss, tolerance: float = 1e-9) -> None:
    wanted = [t for t in arguments[:3] if t is not None]
    ours, _ = head_loss(*arguments, rule, loss)
    theirs = token_loss_reference(*arguments, rule, loss)
    assert ours.shape == () and ours.dtype == theirs.dtype
    assert relative(ours.detach(), theirs.detach()) <= tolerance
    mine, others = (torch.autograd.grad(sum_ * 0.5, wanted) for sum_ in (ours, theirs))
    for a, b in zip(mine, others, strict=True):
        assert a.dtype == b.dtype
        assert b.any()
        assert relative(a, b) <= tolerance


@pytest.mark.parametrize("name", losses(1))
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_all_logits_at_once(name: str, rule: LogitRule, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK", 3)
    agree(inputs(7, bias), rule, losses(7)[name])


@pytest.mark.parametrize("positions", [1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunk_boundaries(positions: int) -> None:
    agree(inputs(positions), LogitRule(softcap=3.0), losses(positions)["everything"])


@pytest.mark.parametrize("name", losses(1))
def test_fp32_is_as_exact_as_fp32_is(name: str) -> None:
    agree(inputs(40, width=16, dtype=torch.float32), LogitRule(), losses(40)[name], tolerance=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_gradients_are_those_of_finite_differences(rule: LogitRule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK", 3)
    hidden, weight, bias, targets, weights = inputs(4)
    assert bias is not None
    loss = losses(4)["everything"]
    assert torch.autograd.gradcheck(
        lambda h, w, b: head_loss(h, w, b, targets, weights, rule, loss)[0], (hidden, weight, bias)
    )


@pytest.mark.parametrize("name", losses(1))
def test_the_plain_cross_entropy_is_shown_beside(name: str) -> None:
    arguments = inputs(9)
    _, shown = head_loss(*arguments, LogitRule(), losses(9)[name])
    assert relative(shown["cross_entropy"], cross_entropy_reference(*arguments, LogitRule()).detach()) <= 1e-12
    assert not any(value.requires_grad for value in shown.values())


def test_a_teacher_that_is_the_student_says_nothing() -> None:
    hidden, weight, bias, targets, weights = inputs(9)
    same = Teacher(hidden.detach(), weight.detach(), None if bias is None else bias.detach(), LogitRule(), 1.0, 3.0)
    loss, shown = head_loss(hidden, weight, bias, targets, weights, LogitRule(), TokenLoss(teacher=same))
    loss.backward()
    assert abs(float(loss.detach())) < 1e-12 and abs(float(shown["teacher_kl"])) < 1e-12
    assert hidden.grad is not None and float(hidden.grad.norm()) < 1e-12


def test_the_size_of_a_teachers_gradient_does_not_vanish_with_the_temperature() -> None:
    """T² in front (arXiv 1503.02531, section 2): between T = 10 and 100 the gradient stays within a tenth."""
    norms = []
    for temperature in (10.0, 100.0):
        hidden, weight, bias, targets, weights = inputs(9)
        loss = TokenLoss(teacher=teacher(9, share=1.0, temperature=temperature))
        head_loss(hidden, weight, bias, targets, weights, LogitRule(), loss)[0].backward()
        assert hidden.grad is not None
        norms.append(float(hidden.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_nothing_to_learn_is_zero_with_zero_gradients() -> None:
    hidden, weight, bias, targets, weights = inputs(0)
    loss, shown = head_loss(hidden, weight, bias, targets, weights, LogitRule(), losses(0)["everything"])
    loss.backward()
    assert float(loss.detach()) == 0.0 and set(shown) == {"cross_entropy", "teacher_kl"}
    assert weight.grad is not None and not weight.grad.any()


def test_positions_of_weight_zero_change_nothing() -> None:
    hidden, weight, bias, targets, weights = inputs(6)
    muted = weights.clone()
    muted[2:] = 0
    loss = losses(6)["everything"]
    whole, _ = head_loss(hidden, weight, bias, targets, muted, LogitRule(), loss)
    assert loss.teacher is not None
    of_part = replace(loss, teacher=replace(loss.teacher, hidden=loss.teacher.hidden[:2]))
    part, _ = head_loss(hidden[:2], weight, bias, targets[:2], weights[:2], LogitRule(), of_part)
    torch.testing.assert_close(whole, part)
    (gradient,) = torch.autograd.grad(whole, hidden)
    assert not gradient[2:].any()


def test_nothing_asked_for_is_the_quick_path(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = inputs(6)
    expected = cross_entropy_reference(*arguments, LogitRule())
    monkeypatch.delattr(token_loss, "_HeadChunks")
    loss, shown = head_loss(*arguments, LogitRule(), TokenLoss())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(shown["cross_entropy"], expected.detach())


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, _, targets, weights = inputs(6, bias=False)
    weight.requires_grad_(False)
    loss = losses(6)["both"]
    head_loss(hidden, weight, None, targets, weights, LogitRule(), loss)[0].backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert not head_loss(hidden, weight, None, targets, weights, LogitRule(), loss)[0].requires_grad


def test_bf16_logits_are_summed_in_fp32() -> None:
    arguments = inputs(CHUNK + 9, width=16, dtype=torch.bfloat16)
    assert head_loss(*arguments, LogitRule(), TokenLoss(0.1, 0.01))[0].dtype == torch.float32
    agree(arguments, LogitRule(), TokenLoss(0.1, 0.01), tolerance=0.05)


def test_under_autocast_no_worse_than_plain_autocast() -> None:
    exact = inputs(300, bias=False, width=32)
    wide = inputs(300, bias=False, width=32, dtype=torch.float32)
    loss = TokenLoss(0.1, 0.01, replace(teacher(300), temperature=1.5))
    assert loss.teacher is not None
    half = replace(loss, teacher=replace(loss.teacher, **{k: getattr(loss.teacher, k).float() for k in NUMBERS}))
    truth = torch.autograd.grad(token_loss_reference(*exact, LogitRule(), loss), exact[:2])
    errors = []
    for form in (
        lambda: head_loss(*wide, LogitRule(), half)[0],
        lambda: token_loss_reference(*wide, LogitRule(), half),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = form()
        found = torch.autograd.grad(value, wide[:2])
        errors.append([relative(a, b) for a, b in zip(found, truth, strict=True)])
    ours, plain = errors
    assert max(plain) > 1e-4  # half precision was at work
    assert all(a <= 1.5 * b for a, b in zip(ours, plain, strict=True)), errors


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", losses(1))
def test_on_a_gpu(name: str) -> None:
    def there(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().cuda().requires_grad_(x.requires_grad)

    hidden, weight, bias, targets, weights = (there(x) for x in inputs(CHUNK + 9, width=16))
    assert hidden is not None and weight is not None and targets is not None and weights is not None
    loss = losses(CHUNK + 9)[name]
    if loss.teacher is not None:
        loss = replace(loss, teacher=replace(loss.teacher, **{k: getattr(loss.teacher, k).cuda() for k in NUMBERS}))
    agree((hidden, weight, bias, targets, weights), LogitRule(softcap=3.0), loss)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, _, targets, weights = inputs(4, bias=False, dtype=torch.float32)
    loss, _ = head_loss(hidden * 1e4, weight * 1e4, None, targets, weights, LogitRule(), losses(4)["smoothing"])
    loss.backward()
    assert torch.isfinite(loss) and weight.grad is not None and torch.isfinite(weight.grad).all()


# --- a function of one's own


def focal(chunk: Chunk, gamma: Tensor) -> Tensor:
    nll = F.cross_entropy(chunk.logits, chunk.targets, reduction="none")
    return ((1 - torch.exp(-nll)) ** gamma * nll * chunk.weights).sum()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("chunk", [2, 100])
def test_a_function_has_exact_gradients_its_own_parameters_included(
    rule: LogitRule, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "CHUNK", chunk)
    hidden, weight, bias, targets, weights = inputs(7)
    gamma = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    wanted = [t for t in (hidden, weight, bias, gamma) if t is not None]
    chunked = FunctionLoss(lambda c: focal(c, gamma), (gamma,))
    ours, shown = head_loss(hidden, weight, bias, targets, weights, rule, chunked)
    whole = Chunk(rule(F.linear(hidden, weight, bias)), targets, weights.double(), slice(0, 7))
    theirs = focal(whole, gamma)
    assert shown == {} and relative(ours.detach(), theirs.detach()) <= 1e-9
    for a, b in zip(torch.autograd.grad(2 * ours, wanted), torch.autograd.grad(2 * theirs, wanted), strict=True):
        assert b.any() and relative(a, b) <= 1e-9


def test_a_function_of_which_parts_are_constant() -> None:
    hidden, weight, bias, targets, weights = inputs(3)
    frozen, unused = torch.tensor(1.0), torch.tensor(1.0, requires_grad=True)
    loss = FunctionLoss(lambda c: c.weights.sum() * frozen, (frozen, unused))
    value, _ = head_loss(hidden, weight, bias, targets, weights, LogitRule(), loss)
    value.backward()
    torch.testing.assert_close(value.detach(), weights.double().sum())
    assert hidden.grad is not None and not hidden.grad.any()
    assert frozen.grad is None and (unused.grad is None or not unused.grad.any())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("positions", [1, CHUNK + 3])
def test_counting_is_plain_cross_entropy_with_the_weight_of_right_guesses(rule, positions):
    arguments = inputs(positions)
    hidden, weight, bias, targets, weights = arguments
    ours, shown = head_loss(*arguments, rule, CountedLoss())
    theirs = cross_entropy_reference(*arguments, rule)
    assert relative(ours.detach(), theirs.detach()) <= 1e-9
    logits = F.linear(hidden, weight, bias)
    assert float(shown["token_accuracy"]) == pytest.approx(float(weights[logits.argmax(-1) == targets].sum()))
    wanted = [t for t in arguments[:3] if t is not None]
    mine, others = (torch.autograd.grad(loss, wanted) for loss in (ours, theirs))
    for a, b in zip(mine, others, strict=True):
        assert relative(a, b) <= 1e-9
