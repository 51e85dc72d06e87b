"""The language-model head and its loss, at chosen positions, without ever holding all logits.

For hidden states h [S, H] at supervised positions, head weight W [V, H], targets y [S] and weights w [S]:
`loss = Σ w_i (logsumexp(z_i) - z_i[y_i])`, `z_i = cap(scale · (W h_i + bias))`. The gradient with respect to z_i is
`w_i (softmax(z_i) - onehot(y_i))`, so it can be computed while the chunk's logits are there, and they are dropped:
memory is one chunk of `[CHUNK, V]` instead of `[T, V]`, and no product is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ops.pointwise import softmax_loss
from tunesmith.ops.product import product

CHUNK = 512
"""Positions whose logits exist at once. Fixed, not derived from sizes, so that results do not depend on memory."""


@dataclass(frozen=True, slots=True)
class LogitRule:
    """What a model does between head product and logits: `cap · tanh(scale · z / cap)`, or `scale · z` without cap."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        z = z * self.scale if self.scale != 1.0 else z
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap is not None else z

    def backward(self, grad: Tensor, logits: Tensor) -> Tensor:
        """Gradient with respect to `z`, given the one with respect to the logits it became."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap) ** 2)
        return grad * self.scale if self.scale != 1.0 else grad


def cross_entropy_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, rule: LogitRule
) -> Tensor:
    """The plain form: all logits at once. Returns the loss sum, a scalar of at least fp32."""
    logits = rule(_widen(F.linear(hidden, weight, bias)))
    return (F.cross_entropy(logits, targets, reduction="none") * weights.to(logits.dtype)).sum()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, rule: LogitRule
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight: Tensor | None = None
        d_bias = torch.zeros_like(bias, dtype=wide) if needs_bias and bias is not None else None
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        device = hidden.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        # Autocast knows torch's own products only, and would make the head narrow in every chunk anew.
        times = product if narrow is None else F.linear
        head, states = (weight, hidden) if narrow is None else (weight.to(narrow), hidden.to(narrow))
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            h = states[part]
            logits = rule(_widen(times(h, head, bias)))
            kept = logits.clone() if rule.softcap is not None else logits
            loss += softmax_loss(logits, targets[part], weights[part].to(wide)).sum()
            if not (needs_hidden or needs_weight or needs_bias):
                continue
            grad = rule.backward(logits, kept)
            if d_bias is not None:
                d_bias += grad.sum(0)
            grad = grad.to(states.dtype)
            if d_hidden is not None:
                d_hidden[part] = times(grad, head.t())
            if needs_weight:
                part_of_weight = times(grad.t(), h.t()).to(wide)
                d_weight = part_of_weight if d_weight is None else d_weight.add_(part_of_weight)
                del part_of_weight
        if needs_weight and d_weight is None:
            d_weight = torch.zeros_like(weight, dtype=wide)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        # Scaled in place where nobody can ask again: the head's gradient can be the largest tensor there is.
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        times = torch.Tensor.mul if again else torch.Tensor.mul_
        d_hidden, d_weight, d_bias = (None if g is None else times(g, scale.to(g.dtype)) for g in gradients)
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight_dtype),
            None if d_bias is None else d_bias.to(bias_dtype),
            None,
            None,
            None,
        )


def head_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, rule: LogitRule
) -> Tensor:
    """As `cross_entropy_reference`, chunk by chunk, with the gradients computed on the way."""
    return _HeadLoss.apply(hidden, weight, bias, targets, weights, rule)  # type: ignore[no-any-return, no-untyped-call]


def _widen(logits: Tensor) -> Tensor:
    """Half-precision logits are summed in fp32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
