"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round one input at a time and let the others make up for it.

For a layer with inputs X the error of weights Ŵ is tr((W - Ŵ) H (W - Ŵ)ᵀ) with H = X Xᵀ. With U upper triangular and
H⁻¹ = Uᵀ U, rounding input i by e_i = (w_i - ŵ_i) / U_ii is best made up for by w_j -= e_i U_ij for all j > i.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tunesmith.export.quantise.grid import Grid, assemble, encode, fit, groups_of, numbers
from tunesmith.inference.quantised_weights import Codes

Order = Literal["stored", "activity", "activity-in-groups"]
"""`stored`: inputs from first to last. `activity`: those with the largest inputs first, and groups are of neighbours in
that order, which files must then name input by input (`desc_act`). `activity-in-groups`: in the order of activity too,
but groups are of neighbours in the file and their scales are set beforehand: as good for any kernel as `stored`."""

_BLOCK = 128
"""Inputs whose corrections are applied at once; others wait, which turns many thin updates into one product."""


class NotPositiveError(ArithmeticError):
    """The Hessian is not positive definite in spite of its damping."""


def gptq(
    weight: Tensor, hessian: Tensor, grid: Grid, *, damping: float = 0.01, order: Order = "activity-in-groups"
) -> Codes:
    """Codes of a weight [out, in] for inputs with second moments `hessian` [in, in], of any scale.

    `damping`: times the mean of its diagonal is added to it. Inputs that calibration never saw are rounded to the
    nearest. Raises `NotPositiveError` where damping does not suffice.
    """
    weight = weight.detach().to(torch.float32).clone()
    inputs = weight.shape[1]
    natural = groups_of(inputs, grid.group, weight.device)
    activity = hessian.diagonal()
    chosen = torch.arange(inputs, device=weight.device)
    if order != "stored":
        chosen = torch.argsort(activity, descending=True, stable=True)
    groups = torch.empty_like(natural)
    groups[chosen] = natural if order == "activity" else natural[chosen]
    upper = _inverse_factor(hessian[chosen][:, chosen], damping)
    count = int(natural[-1]) + 1
    scales, zeros = (weight.new_zeros(weight.shape[0], count) for _ in range(2))
    if order == "activity-in-groups":
        for group in range(count):
            columns = natural == group
            scales[:, group], zeros[:, group] = fit(weight[:, columns], grid)
    codes = torch.empty_like(weight)
    left, of = weight[:, chosen], groups[chosen]
    block = grid.group * max(1, _BLOCK // grid.group)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        errors = torch.empty_like(left[:, start:end])
        for i in range(start, end):
            group = int(of[i])
            if order != "activity-in-groups" and i % grid.group == 0:
                scales[:, group], zeros[:, group] = fit(left[:, i : i + grid.group], grid)
            scale, zero = scales[:, group], zeros[:, group]
            column = left[:, i : i + 1]
            code = encode(column, scale, zero, grid)
            error = (column - numbers(code, scale, zero)) / upper[i, i]
            left[:, i + 1 : end] -= error * upper[i, i + 1 : end]
            errors[:, i - start] = error[:, 0]
            codes[:, chosen[i]] = code[:, 0]
        left[:, end:] -= errors @ upper[start:end, end:]
    return assemble(codes, scales, zeros, groups, grid)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper triangular U with H⁻¹ = Uᵀ U, float32, of a Hessian damped; rows of unseen inputs are made units."""
    damped = hessian.to(torch.float64).clone()
    diagonal = damped.diagonal()
    unseen = diagonal <= 0
    diagonal[unseen] = 1
    diagonal += damping * float(diagonal[~unseen].mean() if bool((~unseen).any()) else 1.0)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed):
        raise NotPositiveError(f"the Hessian is not positive definite with damping {damping}")
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    if bool(failed):
        raise NotPositiveError(f"the Hessian's inverse is not positive definite with damping {damping}")
    found: Tensor = upper.to(torch.float32)
    return found


def output_error(weight: Tensor, values: Tensor, hessian: Tensor) -> float:
    """tr((W - Ŵ) H (W - Ŵ)ᵀ): the squared error of the layer's outputs over all calibration tokens."""
    wrong = (weight - values).to(torch.float32)
    return float(((wrong @ hessian) * wrong).sum())
