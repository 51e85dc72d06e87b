"""Norms, heads and activation between the products: the C form, the plain form and autograd agree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ops import pointwise, pointwise_native
from tunesmith.ops.pointwise import Heads, Norm

FORMS = ["torch", "native"]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Each form in turn; the native one only where it could be compiled."""
    if request.param == "torch":
        monkeypatch.setattr(pointwise_native, "library", lambda: None)
    elif pointwise_native.library() is None:
        pytest.skip(pointwise_native.reason())
    assert pointwise.pointwise_backend() == request.param
    return request.param


def draw(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def exact(*tensors: Tensor) -> list[Tensor]:
    return [t.double().requires_grad_() for t in tensors]


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 5), (300, 64), (7, 1)])
def test_rms_norm(form, offset, shape):
    x, weight, grad, rest = draw(*shape), draw(shape[1], seed=1), draw(*shape, seed=2), draw(*shape, seed=3)
    norm = Norm(weight, 1e-2, offset)
    out, rstd = pointwise.rms_norm(x, norm)
    dx, dw = pointwise.rms_norm_backward(grad, x, rstd, norm, rest, True)
    alone, nothing = pointwise.rms_norm_backward(grad, x, rstd, norm, None, False)
    x64, w64 = exact(x, weight)
    expected = x64 * torch.rsqrt(x64.square().mean(-1, keepdim=True) + 1e-2) * (w64 + offset)
    gx, gw = torch.autograd.grad((expected * grad.double()).sum(), (x64, w64))
    assert relative(out, expected) < 1e-6
    assert nothing is None and relative(alone, gx) < 3e-6
    assert relative(dx, gx + rest.double()) < 1e-6
    assert dw is not None and relative(dw, gw) < 1e-6


@pytest.mark.parametrize("shape", [(1, 3), (130, 48)])
def test_swiglu(form, shape):
    both, grad = draw(shape[0], 2 * shape[1]) * 3, draw(*shape, seed=1)
    (b64,) = exact(both)
    gate, up = b64.chunk(2, -1)
    expected = F.silu(gate) * up
    (g64,) = torch.autograd.grad((expected * grad.double()).sum(), b64)
    assert relative(pointwise.swiglu(both), expected) < 1e-6
    again, d_both = pointwise.swiglu_backward(both, grad.clone())
    assert relative(again, expected) < 1e-6 and relative(d_both, g64) < 1e-6


def test_swiglu_at_the_ends_of_its_range(form):
    gate = torch.tensor([-1e4, -100.0, -88.0, -30.0, 0.0, 30.0, 100.0, 1e4, torch.nan, torch.inf])
    both = torch.cat([gate, torch.ones(10)])[None]
    out = pointwise.swiglu(both)[0]
    torch.testing.assert_close(out, F.silu(gate), equal_nan=True, rtol=1e-6, atol=1e-30)
    _, grads = pointwise.swiglu_backward(both[:, [0, 1, 2, 3, 4, 5, 6, 7, *range(10, 18)]], torch.ones(1, 8))
    assert grads.isfinite().all()
    torch.testing.assert_close(grads[0, 5:8], torch.ones(3))


@pytest.mark.parametrize("normed", [(False, False), (True, True), (True, False)])
@pytest.mark.parametrize(("heads", "tokens"), [(Heads(4, 2, 8), 9), (Heads(3, 3, 16), 140), (Heads(2, 1, 2), 1)])
def test_heads(form, normed, heads, tokens):
    joined, cos, sin = draw(tokens, heads.columns), draw(tokens, heads.size, seed=1), draw(tokens, heads.size, seed=2)
    weights = [draw(heads.size, seed=3 + i) for i in range(2)]
    q_norm, k_norm = (Norm(w, 1e-3) if on else None for w, on in zip(weights, normed, strict=True))
    out = pointwise.split_heads(joined, heads, cos, sin, q_norm, k_norm)
    # Gradients as attention hands them back: by strides of another order for the first of them.
    grads = [draw(tokens, heads.queries, heads.size, seed=5).transpose(0, 1)]
    grads += [draw(heads.keys, tokens, heads.size, seed=6 + i) for i in range(2)]
    d_joined, dq, dk = pointwise.split_heads_backward(
        grads, joined if any(normed) else None, heads, cos, sin, q_norm, k_norm, normed
    )
    j64, *w64 = exact(joined, *weights)
    parts = j64.view(tokens, -1, heads.size).transpose(0, 1).split([heads.queries, heads.keys, heads.keys])
    expected = []
    for x, w, on in zip(parts, [*w64, None], [*normed, False], strict=True):
        if on:
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3) * w
        a, b = x.chunk(2, -1)
        expected.append(x if w is None else x * cos + torch.cat([-b, a], -1) * sin)
    total = sum((e * g.double()).sum() for e, g in zip(expected, grads, strict=True))
    wanted = [j64, *(w for w, on in zip(w64, normed, strict=True) if on)]
    g64 = torch.autograd.grad(total, wanted)
    for ours, theirs in zip(out, expected, strict=True):
        assert ours.is_contiguous() and relative(ours, theirs) < 1e-6
    given = [g for g in (dq, dk) if g is not None]
    assert len(given) == sum(normed)
    for ours, theirs in zip([d_joined, *given], g64, strict=True):
        assert relative(ours, theirs) < 1e-6


def test_softmax_loss(form):
    logits, weights = draw(70, 33) * 5, draw(70, seed=1).abs()
    weights[3] = 0
    targets = torch.arange(70) % 33
    z, _ = exact(logits, weights)
    expected = F.cross_entropy(z, targets, reduction="none") * weights.double()
    (grad,) = torch.autograd.grad(expected.sum(), z)
    losses = pointwise.softmax_loss(logits, targets, weights)
    assert relative(losses, expected) < 1e-6 and relative(logits, grad) < 1e-6
    assert losses[3] == 0 and not logits[3].any()


def test_what_is_not_a_number_stays_so(form):
    logits = draw(3, 5)
    logits[1, 2] = torch.nan
    losses = pointwise.softmax_loss(logits, torch.zeros(3, dtype=torch.long), torch.ones(3))
    assert losses.isnan().tolist() == [False, True, False]
    x = draw(2, 4)
    x[0, 0] = torch.inf
    assert pointwise.rms_norm(x, Norm(torch.ones(4), 1e-6))[0].isnan().any(1).tolist() == [True, False]


def test_float64_is_exact():
    x, weight = draw(5, 8, dtype=torch.float64), draw(8, seed=1, dtype=torch.float64)
    out, _ = pointwise.rms_norm(x, Norm(weight, 1e-6))
    torch.testing.assert_close(out, F.rms_norm(x, (8,), weight, 1e-6), rtol=1e-13, atol=1e-13)


def test_results_do_not_depend_on_threads():
    if pointwise_native.library() is None:
        pytest.skip(pointwise_native.reason())
    x, weight, grad = draw(1000, 24), draw(24, seed=1), draw(1000, 24, seed=2)
    norm, before, results = Norm(weight, 1e-6), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            _, rstd = pointwise.rms_norm(x, norm)
            results.append(pointwise.rms_norm_backward(grad, x, rstd, norm, None, True))
    finally:
        torch.set_num_threads(before)
    for dx, dw in results[1:]:
        assert torch.equal(dx, results[0][0]) and torch.equal(dw, results[0][1])


@pytest.mark.parametrize(
    ("environment", "words"),
    [({"TUNESMITH_NATIVE": "0"}, "switched off"), ({"CC": "no-such-compiler"}, "no C compiler")],
)
def test_without_a_compiler_there_is_none_and_it_says_why(environment, words, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    built = pointwise_native._built.__wrapped__()
    assert built.library is None and words in built.reason


def test_a_compiler_that_fails_is_told_and_leaves_nothing_behind(tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$1" in --version) echo 1;; *) exit 3;; esac\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = pointwise_native._built.__wrapped__()
    assert built.library is None and "could not be compiled" in built.reason
    assert not list((tmp_path / "cache").rglob("*.so"))
