"""The grid a weight is rounded to, and rounding to the nearest point of it (RTN), the method that needs no data.

Of each output and group of inputs, scale and zero follow from the range of the weights. The range is then narrowed as
far as the squared error of rounding falls: a lone large weight is clipped where that serves the many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.inference.quantised_weights import Codes

NARROWED = tuple(1 - 0.05 * i for i in range(10))
"""Shares of the range that are tried."""
_SMALLEST = 2.0**-24
"""A scale that float16 still holds; a group of zeros gets it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """`bits` per weight; `group`: so many neighbouring inputs share a scale, the last group may be shorter.

    `symmetric`: the code in the middle means 0; else where 0 lies follows from the weights, too. `scale_type`: what
    scales are stored in; they are rounded to it before anything is rounded by them.
    """

    bits: int
    group: int
    symmetric: bool = True
    scale_type: torch.dtype = torch.float16

    @property
    def top(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1


def groups_of(inputs: int, group: int, device: torch.device | str = "cpu") -> Tensor:
    """Each input's group, int64 [inputs]."""
    return torch.arange(inputs, device=device) // group


def fit(weight: Tensor, grid: Grid, shares: Sequence[float] = NARROWED) -> tuple[Tensor, Tensor]:
    """Scale and zero, float32 [out] each, for weights [out, n] that share them; `shares` of the range are tried."""
    low, high = weight.amin(1).clamp_max(0), weight.amax(1).clamp_min(0)
    if grid.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    best: tuple[Tensor, Tensor] | None = None
    least = torch.empty(0)
    for share in shares:
        scale = ((high - low) * share / grid.top).clamp_min(_SMALLEST).to(grid.scale_type).to(torch.float32)
        middle = torch.full_like(scale, (grid.top + 1) // 2)
        zero = middle if grid.symmetric else (-low * share / scale).round().clamp(0, grid.top)
        error = (weight - numbers(encode(weight, scale, zero, grid), scale, zero)).square().sum(1)
        if best is None:
            best, least = (scale, zero), error
            continue
        better = error < least
        best = torch.where(better, scale, best[0]), torch.where(better, zero, best[1])
        least = torch.where(better, error, least)
    assert best is not None
    return best


def encode(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Codes (as floats) nearest to weights [out, n] with a scale and zero for each output [out]."""
    return ((weight / scale[:, None]).round() + zero[:, None]).clamp(0, grid.top)


def numbers(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """What codes [out, n] stand for."""
    return (codes - zero[:, None]) * scale[:, None]


def rtn(weight: Tensor, grid: Grid, shares: Sequence[float] = NARROWED) -> Codes:
    """Every weight [out, in] to the nearest point of its group's grid. `shares`: see `fit`."""
    weight = weight.detach().to(torch.float32)
    codes, scales, zeros = [], [], []
    for start in range(0, weight.shape[1], grid.group):
        columns = slice(start, start + grid.group)
        scale, zero = fit(weight[:, columns], grid, shares)
        codes.append(encode(weight[:, columns], scale, zero, grid))
        scales.append(scale)
        zeros.append(zero)
    groups = groups_of(weight.shape[1], grid.group, weight.device)
    return assemble(torch.cat(codes, 1), torch.stack(scales, 1), torch.stack(zeros, 1), groups, grid)


def assemble(codes: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor, grid: Grid) -> Codes:
    """The stored form of codes [out, in], scales and zeros [out, groups] that are still floats."""
    return Codes(grid.bits, codes.to(torch.uint8), scales.to(grid.scale_type), zeros.to(torch.uint8), groups)
