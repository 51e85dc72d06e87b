"""Muon against a plain reference in float64, and against `torch`'s own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.tiny import FAMILIES, build
from tests.training.small import PLAN
from tests.training.test_optimizers import curve
from tunesmith.errors import RecipeError
from tunesmith.models.lora import trainable_parameters
from tunesmith.training.optimizers import grad_norm_and_clip, make_optimizer, set_learning_rate
from tunesmith.training.optimizers.muon import COEFFICIENTS, STEPS, Muon, adamw_scale, orthogonalised

SHAPES = pytest.mark.parametrize("shape", [(8, 8), (24, 9), (9, 24), (1, 5), (5, 1)], ids=str)
A, B, C = COEFFICIENTS


def by_svd(matrix: torch.Tensor) -> torch.Tensor:
    """The iteration on the singular values themselves: odd polynomials keep the singular vectors."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(STEPS):
        s = A * s + B * s**3 + C * s**5
    return u @ torch.diag(s) @ v


@SHAPES
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_orthogonalised_is_the_polynomial_of_the_singular_values(shape, dtype, allowed):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    wanted = by_svd(matrix)
    got = orthogonalised(matrix.to(dtype))
    assert got.dtype == dtype
    assert float((got.double() - wanted).norm() / wanted.norm()) <= allowed
    assert not orthogonalised(torch.zeros(shape, dtype=dtype)).any()


def test_singular_values_come_near_one_whatever_the_size_of_the_gradient():
    torch.manual_seed(0)
    matrix = torch.randn(48, 32, dtype=torch.float64)
    for size in (1e-6, 1.0, 1e6):
        values = torch.linalg.svdvals(orthogonalised(matrix * size))
        assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def reference_step(
    value: torch.Tensor, momentum: torch.Tensor, gradient: torch.Tensor, lr: float, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The algorithm in words of its page: momentum, Nesterov, orthogonal, decay, scaled step."""
    momentum = 0.95 * momentum + 0.05 * gradient
    direction = by_svd(0.05 * gradient + 0.95 * momentum)
    value = value - lr * decay * value
    return value - lr * 0.2 * math.sqrt(max(value.shape)) * direction, momentum


@pytest.mark.parametrize("flat", [True, False])
def test_steps_equal_the_plain_reference_in_float64(flat):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(12, 20, dtype=torch.float64))
    value, momentum = p.detach().clone(), torch.zeros_like(p)
    optimizer = make_optimizer({"layers.0.up.weight": p}, replace(PLAN, optimizer="muon", weight_decay=0.1), flat=flat)
    for i in range(20):
        lr = 0.02 * (1 - i / 20)
        gradient = torch.randn(12, 20, dtype=torch.float64)
        (p * gradient * 7).sum().backward()
        set_learning_rate(optimizer, lr)
        norm = grad_norm_and_clip(optimizer, 0.5, 1 / 7)
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-12)
        optimizer.step()
        optimizer.zero_grad()
        value, momentum = reference_step(value, momentum, gradient * 0.5 / (norm + 1e-6), lr, 0.1)
        assert float((p - value).detach().norm() / value.norm()) <= 1e-9


def test_steps_point_where_those_of_torch_point():
    """`torch.optim.Muon` iterates in bfloat16: directions agree to a few hundredths."""
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(64, 48)), nn.Parameter(torch.zeros(64, 48))
    theirs.data.copy_(ours.data)
    start = ours.detach().clone()
    optimizer = make_optimizer({"layers.0.w": ours}, replace(PLAN, optimizer="muon", weight_decay=0.1))
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    set_learning_rate(optimizer, 0.01)
    for _ in range(5):
        gradient = torch.randn(64, 48)
        ours.grad.copy_(gradient)
        theirs.grad = gradient.clone()
        optimizer.step()
        reference.step()
    moved = (theirs - start).detach().norm()
    assert float((ours - theirs).detach().norm() / moved) < 0.03


def test_updates_are_as_large_as_those_of_adamw():
    torch.manual_seed(0)
    for shape in ((256, 64), (64, 256), (128, 128)):
        update = orthogonalised(torch.randn(shape)) * adamw_scale(torch.empty(shape))
        assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_matrices_get_muon_and_nothing_else(family):
    model = build(family)
    optimizer = make_optimizer(trainable_parameters(model), replace(PLAN, optimizer="muon"))
    by_muon = {part.name for cell in optimizer.cells if isinstance(cell.rule, Muon) for part in cell.parts}
    linear = {f"{name}.weight" for name, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert by_muon == linear - {"lm_head.weight"} and len(by_muon) >= 8


def test_learns_at_the_learning_rate_of_adamw():
    adamw, muon = curve("adamw"), curve("muon")
    assert muon[-1] < 0.75 * muon[0] and muon[-1] < 1.25 * adamw[-1]


def test_sharded_matrices_are_refused(monkeypatch):
    from tunesmith.training.optimizers import make

    monkeypatch.setattr(make, "DTensor", nn.Parameter)
    with pytest.raises(RecipeError, match="whole matrices"):
        make_optimizer({"layers.0.w": nn.Parameter(torch.ones(2, 2))}, replace(PLAN, optimizer="muon"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_iterates_in_bfloat16_and_points_the_same_way():
    torch.manual_seed(0)
    matrix = torch.randn(256, 128)
    here, there = orthogonalised(matrix), orthogonalised(matrix.cuda()).cpu()
    assert there.dtype == torch.float32
    assert float((here - there).norm() / here.norm()) < 0.05
