"""Losses on logits at chosen positions, beyond plain cross-entropy, without ever holding all logits.

The head is computed chunk by chunk, and a `ChunkLoss` says what a chunk's logits cost and how that changes with them;
its gradient is carried on to hidden states and head while the logits are there, and they are dropped. Memory is a few
chunks of `[CHUNK, V]` instead of `[S, V]`, whatever the loss. `cross_entropy` remains the quicker path for the plain
loss and is used where nothing else is asked.

For logits z, target y and weight w of one position, with log-partition n = logsumexp(z), `TokenLoss` is
`w ((1 - s) CE + ζ n² + s T² KL)`:

- CE is against `(1 - ε) onehot(y) + ε / V` (label smoothing, Szegedy et al., arXiv 1512.00567);
- ζ n² is the z-loss (arXiv 2204.02311, section 5);
- KL is from the teacher's distribution to ours, both at temperature T (distillation, arXiv 1503.02531); T² keeps its
  gradient's size independent of T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ops.cross_entropy import LogitRule, head_cross_entropy
from tunesmith.ops.pointwise import softmax_loss
from tunesmith.ops.product import product

CHUNK = 256
"""Positions whose logits exist at once. Fixed, so that results do not depend on memory; less than for the plain loss,
as several tensors of this size are alive."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Logits [C, V] of at least fp32, targets [C] int64, weights [C] in the logits' dtype; `part` of all positions."""

    logits: Tensor
    targets: Tensor
    weights: Tensor
    part: slice


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """Sums over a chunk: the loss first, then what is only shown. Gradients with respect to logits and parameters."""

    sums: tuple[Tensor, ...]
    grad: Tensor | None = None
    parameter_grads: tuple[Tensor | None, ...] = ()


class ChunkLoss(Protocol):
    """What a chunk costs. `shown` names the sums behind the loss; `parameters` are trained beside the head."""

    @property
    def shown(self) -> tuple[str, ...]: ...

    @property
    def parameters(self) -> tuple[Tensor, ...]: ...

    def __call__(self, chunk: Chunk, needs_grad: bool) -> ChunkResult: ...


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher's hidden states [S, Ht] at the same positions, and its head; nothing of it is differentiated.

    share: weight of the teacher in the loss. vocabulary: the first so many tokens are compared (both softmaxes run
    over these), as models with one tokenizer may have heads padded to different sizes; None compares all.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    rule: LogitRule
    share: float
    temperature: float = 1.0
    vocabulary: int | None = None

    def log_probabilities(self, part: slice) -> Tensor:
        """Of a part of the positions, at the temperature: [C, vocabulary]."""
        logits = self.rule(_widen(_times(self.hidden)(self.hidden[part], self.weight, self.bias)))
        return (logits[:, : self.vocabulary] / self.temperature).log_softmax(-1)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Cross-entropy with label smoothing `ε`, z-loss `ζ` and a teacher; see the module for the formula."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    teacher: Teacher | None = None
    parameters: tuple[Tensor, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether nothing but cross-entropy is asked for."""
        return not self.label_smoothing and not self.z_loss and self.teacher is None

    @property
    def shown(self) -> tuple[str, ...]:
        """The plain cross-entropy, comparable between all settings, and the teacher's divergence."""
        return ("cross_entropy",) if self.teacher is None else ("cross_entropy", "teacher_kl")

    def __call__(self, chunk: Chunk, needs_grad: bool) -> ChunkResult:
        z, y, w = chunk.logits, chunk.targets[:, None], chunk.weights[:, None]
        own = 1.0 if self.teacher is None else 1.0 - self.teacher.share
        smoothing, vocabulary = self.label_smoothing, z.shape[1]
        norm = z.logsumexp(-1, keepdim=True)
        at_target = z.gather(1, y)
        plain = norm - at_target
        loss = plain if not smoothing else norm - (1 - smoothing) * at_target - smoothing * z.mean(-1, keepdim=True)
        loss = own * loss + self.z_loss * norm.square()
        grad = None
        if needs_grad:
            grad = (z - norm).exp_().mul_(own + 2 * self.z_loss * norm)
            if smoothing:
                grad -= own * smoothing / vocabulary
            grad.scatter_add_(1, y, torch.full_like(y, -own * (1 - smoothing), dtype=grad.dtype))
        sums = [(plain * w).sum()]
        if self.teacher is not None:
            t = self.teacher.temperature
            target = self.teacher.log_probabilities(chunk.part).to(z.dtype)
            ours = (z[:, : self.teacher.vocabulary] / t).log_softmax(-1)
            chances = target.exp()
            kl = t * t * (chances * (target - ours)).sum(-1, keepdim=True)
            loss = loss + self.teacher.share * kl
            sums.append((kl * w).sum())
            if grad is not None:
                grad[:, : self.teacher.vocabulary] += ours.exp_().sub_(chances).mul_(self.teacher.share * t)
        return ChunkResult(((loss * w).sum(), *sums), None if grad is None else grad.mul_(w))


@dataclass(frozen=True, slots=True)
class CountedLoss:
    """Plain cross-entropy, and the weight that lies on tokens which were the most probable ones in their places."""

    parameters: tuple[Tensor, ...] = ()
    shown: tuple[str, ...] = ("token_accuracy",)

    def __call__(self, chunk: Chunk, needs_grad: bool) -> ChunkResult:
        right = (chunk.logits.argmax(-1) == chunk.targets) * chunk.weights
        grad = chunk.logits.clone()  # a cap's own gradient needs the logits as they were
        loss = softmax_loss(grad, chunk.targets, chunk.weights)
        return ChunkResult((loss.sum(), right.sum()), grad if needs_grad else None)


@dataclass(frozen=True, slots=True)
class FunctionLoss:
    """Any differentiable function of a chunk: `function(chunk)` is its loss sum, a scalar; autograd does the rest."""

    function: Callable[[Chunk], Tensor]
    parameters: tuple[Tensor, ...] = ()
    shown: tuple[str, ...] = ()

    def __call__(self, chunk: Chunk, needs_grad: bool) -> ChunkResult:
        if not needs_grad:
            return ChunkResult((self.function(chunk),))
        with torch.enable_grad():
            logits = chunk.logits.detach().requires_grad_()
            loss = self.function(Chunk(logits, chunk.targets, chunk.weights, chunk.part))
            if not loss.requires_grad:  # nothing in this chunk counts
                return ChunkResult((loss,), torch.zeros_like(logits), (None,) * len(self.parameters))
            trained = [p for p in self.parameters if p.requires_grad]
            grads = torch.autograd.grad(loss, [logits, *trained], allow_unused=True)
        found = iter(grads[1:])
        return ChunkResult(
            (loss.detach(),),
            torch.zeros_like(logits) if grads[0] is None else grads[0],
            tuple(next(found) if p.requires_grad else None for p in self.parameters),
        )


def token_loss_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    rule: LogitRule,
    loss: TokenLoss,
) -> Tensor:
    """The plain form of `TokenLoss`: all logits at once, `torch`'s own functions, autograd."""
    logits = rule(_widen(F.linear(hidden, weight, bias)))
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=loss.label_smoothing)
    if loss.teacher is not None:
        t = loss.teacher
        with torch.no_grad():
            theirs = t.rule(_widen(F.linear(t.hidden, t.weight, t.bias)))[:, : t.vocabulary]
        log_p = F.log_softmax(theirs.to(logits.dtype) / t.temperature, dim=-1)
        log_q = F.log_softmax(logits[:, : t.vocabulary] / t.temperature, dim=-1)
        kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        each = (1 - t.share) * each + t.share * t.temperature**2 * kl
    each = each + loss.z_loss * logits.logsumexp(-1) ** 2
    return (each * weights.to(each.dtype)).sum()


class _HeadChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        chunk_loss: ChunkLoss,
        rule: LogitRule,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[2:5]
        needs_grad = any(ctx.needs_input_grad)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=wide) if needs_bias and bias is not None else None
        d_parameters = [torch.zeros_like(p) if need else None for p, need in _needed(ctx, parameters)]
        sums = torch.zeros(1 + len(chunk_loss.shown), dtype=wide, device=hidden.device)
        times = _times(hidden)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            h = hidden[part]
            logits = rule(_widen(times(h, weight, bias)))
            result = chunk_loss(Chunk(logits, targets[part], weights[part].to(wide), part), needs_grad)
            sums += torch.stack(result.sums)
            if result.grad is None:
                continue
            for total, own in zip(d_parameters, result.parameter_grads, strict=True):
                if total is not None and own is not None:
                    total += own
            grad = rule.backward(result.grad, logits)
            if d_bias is not None:
                d_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[part] = times(grad, weight.t())
            if d_weight is not None:
                d_weight += times(grad.t(), h.t())
        ctx.save_for_backward(d_hidden, d_weight, d_bias, *d_parameters)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        loss, shown = sums[0].clone(), sums[1:].clone()
        ctx.mark_non_differentiable(shown)
        return loss, shown

    @staticmethod
    def backward(ctx: Any, scale: Tensor, shown: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias, *d_parameters = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None,
            None,
            None if d_hidden is None else d_hidden * scale.to(d_hidden.dtype),
            None if d_weight is None else (d_weight * scale).to(weight_dtype),
            None if d_bias is None else (d_bias * scale).to(bias_dtype),
            None,
            None,
            *(None if d is None else d * scale.to(d.dtype) for d in d_parameters),
        )


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    rule: LogitRule,
    chunk_loss: ChunkLoss,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss sum (a scalar of at least fp32) and the sums named in `chunk_loss.shown`, without gradients.

    `hidden` [S, H], head `weight` [V, H] and `bias` [V], `targets` [S] int64, `weights` [S]. Differentiable with
    respect to hidden states, head and the loss's parameters.
    """
    if isinstance(chunk_loss, TokenLoss) and not (
        chunk_loss.label_smoothing or chunk_loss.z_loss or chunk_loss.teacher
    ):
        loss = head_cross_entropy(hidden, weight, bias, targets, weights, rule)
        return loss, {"cross_entropy": loss.detach()}
    loss, shown = _HeadChunks.apply(  # type: ignore[no-untyped-call]
        chunk_loss, rule, hidden, weight, bias, targets, weights, *chunk_loss.parameters
    )
    return loss, dict(zip(chunk_loss.shown, shown.unbind(), strict=True))


def _needed(ctx: Any, parameters: Sequence[Tensor]) -> list[tuple[Tensor, bool]]:
    return list(zip(parameters, ctx.needs_input_grad[7:], strict=True))


def _times(like: Tensor) -> Callable[..., Tensor]:
    """The product to use: autocast knows torch's own products only."""
    return F.linear if torch.is_autocast_enabled(like.device.type) else product


def _widen(logits: Tensor) -> Tensor:
    """Half-precision logits are summed in fp32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
