"""First values of A [r, in] and B [out, r] of a LoRA layer, by the names of the recipe's `method.init`.

default, gaussian: A random, B zero, so that an untrained adapter changes nothing (arXiv 2106.09685).
pissa: the r largest singular directions of the weight (Meng et al. 2024, arXiv 2404.02948).
olora: the first r columns and rows of its QR decomposition (Büyükakyüz 2024, arXiv 2406.01775).

The last two begin with `s B A ≠ 0`; the layer subtracts what it began with, so that it still answers as before. They
are functions of the weight alone: attached again, a layer begins with the same values. The decompositions leave the
sign of each direction open; it is fixed here, so that another linear-algebra library begins likewise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FROM_WEIGHTS = ("pissa", "olora")
"""Initialisations that take their values from the frozen weight."""


@torch.no_grad()
def random_a(kind: str, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A of shape [r, in], drawn on the CPU so that every device begins with the same numbers.

    default is uniform in ±1/√in (Kaiming with a = √5), gaussian has standard deviation 1/r; both as PEFT draws them.
    """
    a = torch.empty(shape, dtype=dtype)
    if kind == "gaussian":
        return nn.init.normal_(a, std=1 / shape[0], generator=generator)
    return nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)


def from_weight(kind: str, weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A and B by `pissa` or `olora` of `weight` [out, in], which is at least fp32."""
    return pissa(weight, rank, scaling) if kind == "pissa" else olora(weight, rank)


@torch.no_grad()
def pissa(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A and B with `s B A` the best approximation of `weight` of this rank, its singular values shared evenly."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / scaling).sqrt()
    a, b = root[:, None] * right[:rank], left[:, :rank] * root
    signs = _signs(a.gather(1, a.abs().argmax(1, keepdim=True)).squeeze(1))
    return (a * signs[:, None]).contiguous(), (b * signs).contiguous()


@torch.no_grad()
def olora(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A the first rows of R, B the first columns of Q, of `weight = Q R`; orthonormal columns in B."""
    q, r = torch.linalg.qr(weight)
    a, b = r[:rank], q[:, :rank]
    signs = _signs(torch.diagonal(a))
    return (a * signs[:, None]).contiguous(), (b * signs).contiguous()


def _signs(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0).to(values.dtype)
