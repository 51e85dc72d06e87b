"""Matrices of low rank as two thin ones, without ever making the wide one: their size, their sum, their best part.

`s B A` with A [r, in] and B [out, r]. With QR of B and Aᵀ everything is done on r x r matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """`B A`, with A [r, in] and B [out, r]; whatever scaled it is in B."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def padded(self, rank: int) -> LowRank:
        """The same matrix by `rank` columns and rows; those added are zero."""
        more = rank - self.rank
        if more == 0:
            return self
        return LowRank(
            torch.cat([self.a, self.a.new_zeros(more, self.a.shape[1])]),
            torch.cat([self.b, self.b.new_zeros(self.b.shape[0], more)], dim=1),
        )


def added(parts: Sequence[tuple[float, LowRank]]) -> LowRank:
    """The weighted sum, exactly, of the ranks' sum."""
    return LowRank(torch.cat([part.a for _, part in parts]), torch.cat([w * part.b for w, part in parts], dim=1))


@torch.no_grad()
def values_of(matrix: LowRank) -> Tensor:
    """Singular values of `B A` in double precision, largest first."""
    core = torch.linalg.qr(matrix.b.double())[1] @ torch.linalg.qr(matrix.a.double().t())[1].t()
    values: Tensor = torch.linalg.svdvals(core)
    return values


@torch.no_grad()
def best_part(matrix: LowRank, rank: int) -> LowRank:
    """The nearest matrix of a lower rank, its singular values shared evenly."""
    left, core_left = torch.linalg.qr(matrix.b.double())
    right, core_right = torch.linalg.qr(matrix.a.double().t())
    u, s, v = torch.linalg.svd(core_left @ core_right.t())
    return _shared(left @ u[:, :rank], s[:rank], v[:rank] @ right.t(), matrix.a.dtype)


@torch.no_grad()
def of_matrix(wide: Tensor, rank: int | None, max_error: float | None) -> tuple[LowRank, Tensor]:
    """The nearest matrix to `wide` [out, in] of `rank`, or of the lowest whose relative error is at most `max_error`;
    and all singular values of `wide`. Both given: the lower rank of the two."""
    u, s, v = torch.linalg.svd(wide.to(torch.promote_types(wide.dtype, torch.float32)), full_matrices=False)
    kept = min(rank or len(s), _rank_within(s, max_error) if max_error is not None else len(s))
    return _shared(u[:, :kept], s[:kept], v[:kept], torch.float32), s.double()


def left_over(values: Tensor, rank: int) -> float:
    """Squared Frobenius norm of what the nearest matrix of a rank leaves out."""
    return float(values[rank:].double().square().sum())


def _rank_within(values: Tensor, max_error: float) -> int:
    squares = values.double().square()
    tails = squares.flip(0).cumsum(0).flip(0)  # tails[k]: what the first k leave out
    allowed = max_error**2 * float(squares.sum())
    within = (tails <= allowed).nonzero()
    return max(1, int(within[0])) if len(within) else len(values)


def _shared(u: Tensor, s: Tensor, v: Tensor, dtype: torch.dtype) -> LowRank:
    root = s.clamp_min(0).sqrt()
    return LowRank((root[:, None] * v).to(dtype).contiguous(), (u * root).to(dtype).contiguous())
