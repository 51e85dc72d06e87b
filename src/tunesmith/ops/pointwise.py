"""What a decoder layer computes between its matrix products, forward and backward: norms, heads, gated activation.

Each function has two forms with the same result: plain torch for any dtype and device (the reference), and one pass
over memory in C (`pointwise.c`) for dense fp32 on a CPU where it could be compiled. `pointwise_backend` says which.
None of them is differentiable: the backward form stands beside each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ops import pointwise_native


def pointwise_backend() -> str:
    """`native` where the C form runs (fp32 on a CPU), else `torch`."""
    return "torch" if pointwise_native.library() is None else "native"


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm (arXiv 1910.07467) over the last dimension: `x / √(mean x² + eps) · (weight + offset)`."""

    weight: Tensor
    eps: float
    offset: float = 0.0

    @property
    def scale(self) -> Tensor:
        """What the normalised rows are multiplied by, [H]."""
        return self.weight + self.offset if self.offset else self.weight


@dataclass(frozen=True, slots=True)
class Heads:
    """How the columns of a joined query, key and value product are divided: `size` each, in this order."""

    queries: int
    keys: int
    size: int

    @property
    def columns(self) -> int:
        return (self.queries + 2 * self.keys) * self.size


def rms_norm(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The norm of rows `x` [T, H], and the reciprocal root mean squares [T, 1] its gradient needs."""
    native = _native(x, norm.weight)
    if native is None:
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
        return x * rstd * norm.scale, rstd
    out, rstd = torch.empty_like(x), x.new_empty(x.shape[0], 1)
    native.rms_norm(*_at(x, norm.weight), norm.eps, norm.offset, *_at(out, rstd), *x.shape)
    return out, rstd


def rms_norm_backward(
    grad: Tensor, x: Tensor, rstd: Tensor, norm: Norm, residual: Tensor | None, train: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `x` [T, H] (with `residual` [T, H] added) and, where `train`, of the weight [H]."""
    native = _native(grad, x, rstd, norm.weight, residual)
    if native is None:
        scaled = grad * norm.scale
        dx = scaled * rstd - x * ((scaled * x).mean(-1, keepdim=True) * rstd**3)
        return dx if residual is None else dx.add_(residual), (grad * x * rstd).sum(0) if train else None
    dx, dw = torch.empty_like(x), torch.empty_like(norm.weight) if train else None
    native.rms_norm_backward(*_at(grad, x, rstd, norm.weight), norm.offset, *_at(residual, dx, dw), *x.shape)
    return dx, dw


def swiglu(both: Tensor) -> Tensor:
    """`silu(gate) · up` [T, I] of `both` = gate | up [T, 2I] (arXiv 2002.05202)."""
    native = _native(both)
    if native is None:
        gate, up = both.chunk(2, -1)
        return F.silu(gate).mul_(up)
    out = both.new_empty(both.shape[0], both.shape[1] // 2)
    native.swiglu(*_at(both, out), *out.shape)
    return out


def swiglu_backward(both: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """`silu(gate) · up` [T, I] once more, and the gradient of `both` [T, 2I]. Overwrites `grad` [T, I]."""
    native = _native(both, grad)
    if native is None:
        gate, up = both.chunk(2, -1)
        share = gate.sigmoid()
        silu = gate * share
        d_both = torch.cat([grad * up * share * (1 + gate * (1 - share)), grad * silu], -1)
        return silu.mul_(up), d_both
    d_both = torch.empty_like(both)
    native.swiglu_backward(*_at(both, grad, d_both), *grad.shape)
    return grad, d_both


def softmax_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropies [S] of `logits` [S, V], which become their gradient, `w (softmax - onehot(target))`.

    `targets` [S] int64; `weights` [S] in the logits' dtype.
    """
    native = _native(logits, weights)
    if native is not None and targets.is_contiguous():
        losses = torch.empty_like(weights)
        native.softmax_loss(*_at(logits, targets, weights, losses), *logits.shape)
        return losses
    top = logits.amax(-1, keepdim=True)
    at_target = logits.gather(1, targets[:, None])
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    logits.mul_(weights[:, None] / total)
    logits.scatter_add_(1, targets[:, None], -weights[:, None])
    return weights * (total.log() + top - at_target).squeeze(1)


def split_heads(
    joined: Tensor, heads: Heads, cos: Tensor, sin: Tensor, q_norm: Norm | None, k_norm: Norm | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [Hq, T, D], keys and values [Hkv, T, D] of `joined` [T, (Hq + 2 Hkv) D].

    Queries and keys are normalised per head where there is a norm, and turned by their position: with halves (a, b) of
    a head, `(a, b) · cos + (-b, a) · sin`; `cos`, `sin` [T, D] (arXiv 2104.09864).
    """
    kinds = _kinds(heads, q_norm, k_norm)
    native = _native(joined, cos, sin, *(norm.weight for *_, norm, _ in kinds if norm is not None))
    out = []
    for start, count, norm, turned in kinds:
        if native is None:
            x = joined[:, start : start + count * heads.size].view(-1, count, heads.size).transpose(0, 1)
            if norm is not None:
                x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.scale
            out.append((x * cos + _turn(x) * sin if turned else x).contiguous())
            continue
        to = joined.new_empty(count, len(joined), heads.size)
        place = (joined.shape[1], start, count, heads.size)
        angles = _at(cos, sin) if turned else _at(None, None)
        native.split_heads(*_at(joined), *place, *_weight(norm), *angles, *_at(to), len(joined))
        out.append(to)
    return out[0], out[1], out[2]


def split_heads_backward(
    grads: Sequence[Tensor],
    joined: Tensor | None,
    heads: Heads,
    cos: Tensor,
    sin: Tensor,
    q_norm: Norm | None,
    k_norm: Norm | None,
    train: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of `joined` and, where `train`, of the two norms' weights [D], from those of queries, keys and values.

    `joined` may be None where neither has a norm.
    """
    tokens = grads[0].shape[1]
    kinds = _kinds(heads, q_norm, k_norm)
    rows = [g if g.stride(2) == 1 else g.contiguous() for g in grads]
    weights = [norm.weight for *_, norm, _ in kinds if norm is not None]
    native = _native(cos, sin, joined, *weights, dense=rows)
    d_joined = rows[0].new_empty(tokens, heads.columns)
    d_norms: list[Tensor | None] = []
    wanted = (*train, False)
    for grad, (start, count, norm, turned), learns in zip(rows, kinds, wanted, strict=True):
        part = slice(start, start + count * heads.size)
        d_norm = None
        if native is None:
            dx = grad * cos - _turn(grad * sin) if turned else grad
            if norm is not None and joined is not None:
                x = joined[:, part].view(-1, count, heads.size).transpose(0, 1)
                rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
                d_norm = (dx * x * rstd).sum((0, 1)) if learns else None
                scaled = dx * norm.scale
                dx = scaled * rstd - x * ((scaled * x).mean(-1, keepdim=True) * rstd**3)
            d_joined[:, part] = dx.transpose(0, 1).flatten(1)
        else:
            d_norm = torch.empty_like(norm.weight) if learns and norm is not None else None
            strides = (grad.stride(0), grad.stride(1))
            place = (heads.columns, start, count, heads.size)
            angles = _at(cos, sin) if turned else _at(None, None)
            source = _at(grad)[0]
            native.split_heads_backward(
                source, *strides, *_at(joined), *place, *_weight(norm), *angles, *_at(d_joined, d_norm), tokens
            )
        d_norms.append(d_norm)
    return d_joined, d_norms[0], d_norms[1]


def _kinds(heads: Heads, q_norm: Norm | None, k_norm: Norm | None) -> list[tuple[int, int, Norm | None, bool]]:
    """First column, number of heads, norm, and whether they are turned: of queries, keys and values."""
    keys = heads.queries * heads.size
    values = keys + heads.keys * heads.size
    q_norm, k_norm = (None if n is None else Norm(n.scale, n.eps) for n in (q_norm, k_norm))
    return [(0, heads.queries, q_norm, True), (keys, heads.keys, k_norm, True), (values, heads.keys, None, False)]


def _turn(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def _native(*tensors: Tensor | None, dense: Sequence[Tensor] = ()) -> ctypes.CDLL | None:
    """The C functions where they can take these tensors (`dense`: in their last dimension only)."""
    known = [t for t in tensors if t is not None]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (*known, *dense)):
        return None
    if not all(t.is_contiguous() for t in known):
        return None
    return pointwise_native.library()


def _at(*tensors: Tensor | None) -> list[int | None]:
    return [None if t is None else t.data_ptr() for t in tensors]


def _weight(norm: Norm | None) -> tuple[int | None, float]:
    return (None, 0.0) if norm is None else (norm.weight.data_ptr(), norm.eps)
