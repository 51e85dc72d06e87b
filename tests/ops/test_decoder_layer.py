"""The two halves of a decoder layer against plain autograd in float64: values and every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ops.decoder_layer import Projection, attention_input, attention_output
from tunesmith.ops.pointwise import Heads, Norm

TOKENS, WIDTH, INNER = 21, 12, 20
HEADS = Heads(4, 2, 6)


def draw(*size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64) / size[-1] ** 0.5


def projection(out: int, wide: int, kind: str, seed: int) -> Projection:
    """`full`: weight and bias learn; `lora`: the adapter does; `plain`: neither exists or learns."""
    weight, bias = draw(out, wide, seed=seed), draw(out, seed=seed + 1)
    if kind == "full":
        return Projection(weight.requires_grad_(), bias.requires_grad_())
    if kind == "lora":
        a, b = draw(3, wide, seed=seed + 2).requires_grad_(), draw(out, 3, seed=seed + 3).requires_grad_()
        return Projection(weight, bias, a, b, 0.7)
    return Projection(weight)


def linear(p: Projection, x: Tensor) -> Tensor:
    out = F.linear(x, p.weight, p.bias)
    return out if p.a is None or p.b is None else out + p.scaling * F.linear(F.linear(x, p.a), p.b)


def normalised(x: Tensor, norm: Norm) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * (norm.weight + norm.offset)


def learners(*things: Projection | Norm | Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    for thing in things:
        tensors = thing.tensors if isinstance(thing, Projection) else [getattr(thing, "weight", thing)]
        found += [t for t in tensors if t is not None and t.requires_grad]
    return found


def check(ours: Tensor | tuple[Tensor, ...], theirs: Tensor | tuple[Tensor, ...], wanted: list[Tensor]) -> None:
    ours, theirs = ((t,) if isinstance(t, Tensor) else t for t in (ours, theirs))
    totals = []
    for outputs in (ours, theirs):
        totals.append(sum((o * torch.linspace(-1, 2, o.numel()).view(o.shape)).sum() for o in outputs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert wanted
    for a, b in zip(*(torch.autograd.grad(t, wanted) for t in totals), strict=True):
        assert b.any()
        assert float((a - b).norm() / b.norm()) < 1e-12


KINDS = [("full",) * 4, ("lora",) * 4, ("lora", "plain", "full", "lora"), ("plain", "full", "plain", "plain")]


@pytest.mark.parametrize("head_norms", [True, False])
@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("kinds", KINDS)
def test_before_attention(kinds, below, head_norms):
    x = draw(TOKENS, WIDTH, seed=0).requires_grad_(below)
    norm = Norm(draw(WIDTH, seed=1).requires_grad_("full" in kinds), 1e-5)
    cos, sin = draw(TOKENS, HEADS.size, seed=2), draw(TOKENS, HEADS.size, seed=3)
    rows = (HEADS.queries * HEADS.size, HEADS.keys * HEADS.size, HEADS.keys * HEADS.size)
    parts = [projection(n, WIDTH, kind, 10 * i + 10) for i, (n, kind) in enumerate(zip(rows, kinds, strict=False))]
    norms = [Norm(draw(HEADS.size, seed=4 + i).requires_grad_(), 1e-5) if head_norms else None for i in range(2)]
    expected = []
    for p, head_norm in zip(parts, [*norms, None], strict=True):
        h = linear(p, normalised(x, norm)).view(TOKENS, -1, HEADS.size).transpose(0, 1)
        h = h if head_norm is None else normalised(h, head_norm)
        a, b = h.chunk(2, -1)
        expected.append(h if p is parts[2] else h * cos + torch.cat([-b, a], -1) * sin)
    ours = attention_input(x, norm, parts, HEADS, cos, sin, *norms)
    check(ours, tuple(expected), learners(x, norm, *parts, *(n for n in norms if n is not None)))


def reference_output(x: Tensor, a: Tensor, norm: Norm, parts: list[Projection]) -> Tensor:
    out, gate, up, down = parts
    middle = x + linear(out, a)
    inner = normalised(middle, norm)
    return middle + linear(down, F.silu(linear(gate, inner)) * linear(up, inner))


def output_parts(kinds: tuple[str, ...]) -> list[Projection]:
    shapes = [(WIDTH, 24), (INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
    return [projection(*s, kind, 10 * i + 10) for i, (s, kind) in enumerate(zip(shapes, kinds, strict=True))]


@pytest.mark.parametrize("below", ["both", "attention", "input", "none"])
@pytest.mark.parametrize("kinds", [*KINDS, ("plain", "plain", "plain", "lora")])
def test_after_attention(kinds, below):
    x = draw(TOKENS, WIDTH, seed=0).requires_grad_(below in ("both", "input"))
    attended = draw(TOKENS, 24, seed=5).requires_grad_(below in ("both", "attention"))
    norm = Norm(draw(WIDTH, seed=1).requires_grad_("full" in kinds), 1e-5, offset=1.0)
    parts = output_parts(kinds)
    ours = attention_output(x, attended, parts[0], norm, *parts[1:])
    check(ours, reference_output(x, attended, norm, parts), learners(x, attended, norm, *parts))


def test_nothing_is_kept_where_nothing_learns():
    x, norm = draw(TOKENS, WIDTH, seed=0), Norm(draw(WIDTH, seed=1), 1e-5)
    parts = output_parts(("plain",) * 4)
    out = attention_output(x, draw(TOKENS, 24, seed=5), parts[0], norm, *parts[1:])
    assert not out.requires_grad and out.grad_fn is None


def test_a_weight_changed_before_the_backward_pass_is_noticed():
    x, norm = draw(TOKENS, WIDTH, seed=0).requires_grad_(), Norm(draw(WIDTH, seed=1), 1e-5)
    parts = output_parts(("lora",) * 4)
    out = attention_output(x, draw(TOKENS, 24, seed=5), parts[0], norm, *parts[1:])
    with torch.no_grad():
        parts[3].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_finite_differences():
    parts = output_parts(("full", "lora", "lora", "full"))
    norm = Norm(draw(WIDTH, seed=1).requires_grad_(), 1e-5)
    x, attended = draw(3, WIDTH, seed=0).requires_grad_(), draw(3, 24, seed=5).requires_grad_()

    def form(*_: Tensor) -> Tensor:
        return attention_output(x, attended, parts[0], norm, *parts[1:])

    assert torch.autograd.gradcheck(form, learners(x, attended, norm, *parts))
