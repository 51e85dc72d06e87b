"""Attention of some queries to some of their keys, in a form that lets parts be joined.

For queries q, keys k and values v, a *partial attention* gives `out = softmax(s) v` and `lse = logsumexp(s)` over the
keys it was shown, `s = cap(scale · q kᵀ)`. Two parts over different keys join into the attention over both:

    lse = logaddexp(lse₁, lse₂),    out = out₁ exp(lse₁ - lse) + out₂ exp(lse₂ - lse)

Backward, each part needs only the joined `out` and `lse`: with `p = exp(s - lse)`, the share of each key in the whole,
`dv = pᵀ dout` and `ds = p (dout vᵀ - rowsum(dout · out))`, which is exact and local to the part (the identity behind
blockwise and ring attention: Liu et al. 2023, arXiv 2310.01889; backward form of Dao 2023, arXiv 2307.08691).

Two ways to compute a part: torch's fused CPU kernel, which takes `out` and `lse` as given backward, and plain products,
for soft-capping and other devices. Shapes: q [N, H, L, D]; k, v [N, Hkv, S, D] with H a multiple of
Hkv (nothing is copied per query head); out [N, H, L, D]; lse [N, H, L].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_SCORES = 1 << 22
"""Scores that plain products hold at once."""
_ROWS = 64
"""Queries that a block has at least, so that products stay large."""


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """From products to scores: `scale · q kᵀ`, then `softcap · tanh(s / softcap)` if there is a soft cap."""

    scale: float
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Sight:
    """Which keys a query sees. With `offset` the distance of query 0 from key 0, query i sees key j if
    `0 <= offset + i - j < window`; without a window, all keys up to its own; `everything` overrides both.

    `offsets` [L] replaces `offset + i` where queries are not one run of tokens.
    """

    offset: int = 0
    window: int | None = None
    everything: bool = False
    offsets: Tensor | None = None

    def mask(self, queries: slice, keys: slice, device: torch.device) -> Tensor | None:
        """True where a query of these sees a key of these, [L, S], or None where all do."""
        if self.everything:
            return None
        if self.offsets is None:
            at = torch.arange(self.offset + queries.start, self.offset + queries.stop, device=device)
        else:
            at = self.offsets[queries]
        distance = at[:, None] - torch.arange(keys.start, keys.stop, device=device)[None, :]
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def blocks(self, queries: int, keys: int, rows: int) -> Iterator[tuple[slice, slice]]:
        """Runs of at most `rows` queries, each with the run of keys it sees anything of."""
        for start in range(0, queries, rows):
            stop = min(start + rows, queries)
            first, last = 0, keys
            if not self.everything and self.offsets is None:
                last = min(keys, self.offset + stop)
                first = 0 if self.window is None else max(0, self.offset + start - self.window + 1)
            yield slice(start, stop), slice(first, last)


def attend(q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule, sight: Sight) -> tuple[Tensor, Tensor]:
    """`out` in q's dtype, and `lse` in fp32 (fp64 for fp64). Every query must see at least one key."""
    if _fused(q, rule):
        if sight.everything or _causal(sight, q, k):
            whole: tuple[Tensor, Tensor] = _flash(q, k, v, 0.0, not sight.everything, scale=rule.scale)
            return whole
        parts = []
        for rows, columns in sight.blocks(q.shape[2], k.shape[2], _window_rows(sight)):
            hidden = _hidden(sight.mask(rows, columns, q.device), q)
            part = q[:, :, rows], k[:, :, columns], v[:, :, columns]
            parts.append(_flash(*part, 0.0, False, attn_mask=hidden, scale=rule.scale))
    else:
        parts = [
            _plain(q[:, :, rows], k[:, :, columns], v[:, :, columns], rule, sight.mask(rows, columns, q.device))
            for rows, columns in sight.blocks(q.shape[2], k.shape[2], _plain_rows(q, k, sight))
        ]
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rule: ScoreRule, sight: Sight
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv) of this part, given the gradient of the joined output and the joined `out` and `lse`."""
    fused = _fused(q, rule)
    if fused and (sight.everything or _causal(sight, q, k)):
        causal = not sight.everything
        return _flash_backward(grad, q, k, v, out, lse, 0.0, causal, scale=rule.scale)  # type: ignore[no-any-return]
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, columns in sight.blocks(
        q.shape[2], k.shape[2], _window_rows(sight) if fused else _plain_rows(q, k, sight)
    ):
        part = grad[:, :, rows], q[:, :, rows], k[:, :, columns], v[:, :, columns], out[:, :, rows], lse[:, :, rows]
        seen = sight.mask(rows, columns, q.device)
        if fused:
            gq, gk, gv = _flash_backward(*part, 0.0, False, attn_mask=_hidden(seen, q), scale=rule.scale)
        else:
            gq, gk, gv = _plain_backward(*part, rule, seen)
        dq[:, :, rows] = gq
        dk[:, :, columns] += gk
        dv[:, :, columns] += gv
    return dq, dk, dv


def join(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Join a second part into `out` [..., D] and `lse` [...], in place."""
    whole = torch.logaddexp(lse, other_lse)
    mine, theirs = (lse - whole).exp_()[..., None], (other_lse - whole).exp_()[..., None]
    if out.dtype == lse.dtype:
        out.mul_(mine).addcmul_(other, theirs)
    else:
        out.copy_(out * mine + other * theirs)
    lse.copy_(whole)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _fused(q: Tensor, rule: ScoreRule) -> bool:
    """Whether torch's CPU kernel can compute it."""
    return q.device.type == "cpu" and rule.softcap is None


def _causal(sight: Sight, q: Tensor, k: Tensor) -> bool:
    """Whether it is plain causal attention of a run of tokens to itself."""
    windowless = sight.window is None or sight.window >= k.shape[2]
    return sight.offsets is None and sight.offset == 0 and q.shape[2] == k.shape[2] and windowless


def _window_rows(sight: Sight) -> int:
    """A block of queries sees at most its own length and the window."""
    return max(_ROWS, sight.window or _ROWS)


def _plain_rows(q: Tensor, k: Tensor, sight: Sight) -> int:
    """As many as memory allows; fewer where a block is spared the keys behind it."""
    rows = _SCORES // (q.shape[0] * q.shape[1] * k.shape[2])
    return max(_ROWS, rows if sight.everything or sight.offsets is not None else min(rows, 2 * _ROWS))


def _hidden(seen: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to scores: minus infinity where a key is not seen."""
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))


def _folded(q: Tensor, k: Tensor) -> Tensor:
    """[N, H, L, D] to [N·Hkv, (H/Hkv)·L, D]: the query heads of a key head one below the other."""
    return q.reshape(k.shape[0] * k.shape[1], -1, q.shape[3])


def _scores(q: Tensor, k: Tensor, rule: ScoreRule, seen: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scores [N·Hkv, (H/Hkv)·L, S] in at least fp32, and tanh of the capped ones (None without a cap)."""
    scores = torch.bmm(_folded(q, k), k.reshape(-1, *k.shape[2:]).transpose(1, 2))
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    scores, squashed = scores.mul_(rule.scale), None
    if rule.softcap is not None:
        squashed = torch.tanh(scores / rule.softcap)
        scores = squashed * rule.softcap
    hidden = _hidden(seen, scores)
    if hidden is not None:
        scores.view(-1, *hidden.shape).add_(hidden)
    return scores, squashed


def _plain(q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    scores, _ = _scores(q, k, rule, seen)
    most = scores.amax(-1, keepdim=True)
    shares = scores.sub_(most).exp_()
    total = shares.sum(-1, keepdim=True)
    out = torch.bmm(shares.to(v.dtype), v.reshape(-1, *v.shape[2:]))
    out = (out / total).to(v.dtype)
    return out.view(*q.shape[:3], v.shape[3]), most.add_(total.log()).view(q.shape[:3])


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rule: ScoreRule, seen: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    scores, squashed = _scores(q, k, rule, seen)
    shares = scores.sub_(lse.reshape(*scores.shape[:2], 1)).exp_()
    flat_grad, flat_v = _folded(grad, k), v.reshape(-1, *v.shape[2:])
    own = (grad.to(shares.dtype) * out.to(shares.dtype)).sum(-1).reshape(*scores.shape[:2], 1)
    dv = torch.bmm(shares.to(v.dtype).transpose(1, 2), flat_grad)
    d_scores = torch.bmm(flat_grad, flat_v.transpose(1, 2)).to(shares.dtype).sub_(own).mul_(shares)
    if squashed is not None:
        d_scores.mul_(1 - squashed * squashed)
    d_scores = d_scores.mul_(rule.scale).to(q.dtype)
    dq = torch.bmm(d_scores, k.reshape(-1, *k.shape[2:]))
    dk = torch.bmm(d_scores.transpose(1, 2), _folded(q, k))
    return dq.view(q.shape), dk.view(k.shape), dv.view(v.shape)
