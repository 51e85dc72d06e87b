"""How far numbers may be from a float64 reference, and how far they are.

The error of a tensor is relative, `|ours - reference| / |reference|` in L2. It may be 1e-9 in fp64 and 1e-5 in fp32; in
half precision 1.5 times what plain torch makes in the same type, or what rounding a result to that type costs, if that
is more. Where the reference has no gradient, or zeros only, ours must have none or exact zeros: a gradient that leaks
into a masked or frozen tensor has no small size that would be fine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor | None]
"""Results and gradients by name; None where there is no gradient."""

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5}
RATIO = 1.5
"""Errors in half precision may be so many times those of plain torch."""
_NOISE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
"""Half a unit in the last place: a plain result that happens to be closer than its type can hold is luck."""

_NOTHING = 1e-10
"""Share of the largest gradient below which one in float64 is rounding noise."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of a check's tensors, the one with the least room: its relative error, and what it may be."""

    worst_tensor: str
    error: float
    allowed: float
    tensors: int


def relative_error(ours: Tensor | None, reference: Tensor | None, largest: float = 0.0) -> float:
    """Relative L2 error; infinity for another shape, a number that is none, or a zero that is not exactly one.

    largest: norm that counts instead of the reference's own, where that is nothing beside it.
    """
    if reference is None or not reference.any():
        return 0.0 if ours is None or not ours.any() else math.inf
    if ours is None or ours.shape != reference.shape:
        return math.inf
    wide = reference.double()
    size = float(wide.norm())
    error = float((ours.to(wide) - wide).norm()) / (largest if size < _NOTHING * largest else size)
    return error if math.isfinite(error) else math.inf


def judge(
    ours: Tensors, reference: Tensors, dtype: torch.dtype, plain: Tensors | None = None, *, rows: bool = False
) -> Comparison:
    """The worst of all tensors of the reference.

    Parameters
    ----------
    dtype: what ours was computed in.
    plain: what plain torch makes in that type. Needed for half precision; in fp32 and fp64 it widens the limit where
        plain torch itself does not keep it (deep models add up rounding).
    rows: a row of zeros in a matrix of the reference must be exact zeros in ours too, such as the gradient of the
        embedding of a word that does not occur.
    """
    if not reference or ours.keys() != reference.keys():
        missing = sorted(reference.keys() ^ ours.keys())
        return Comparison(missing[0] if missing else "nothing was compared", math.inf, 0.0, len(reference))
    gradients = [t for name, t in reference.items() if name.startswith("d ") and t is not None]
    largest = max((float(t.norm()) for t in gradients), default=0.0)
    found = []
    for name, theirs in reference.items():
        limit = LIMITS.get(dtype, 0.0)
        if plain is not None:
            limit = max(limit, RATIO * max(relative_error(plain[name], theirs, largest), _floor(dtype)))
        error = relative_error(ours[name], theirs, largest)
        if rows and _leaks(ours[name], theirs):
            error = math.inf
        found.append(Comparison(name, error, limit, len(reference)))
    return max(found, key=room_used)


def room_used(found: Comparison) -> float:
    """Error as a share of what is allowed; above 1 the check does not hold."""
    if found.allowed > 0:
        return found.error / found.allowed
    return math.inf if found.error > 0 else 0.0


def together(parts: Sequence[Tensors]) -> Tensors:
    """Results of several batches as one: tensors of one name on top of each other, so that their errors are pooled."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Tensor | None] = {}
    for name in parts[0]:
        there = [part[name] for part in parts]
        like = next((t for t in there if t is not None), None)
        filled = [t if t is not None else torch.zeros_like(like) for t in there] if like is not None else []
        joined[name] = torch.cat([t if t.ndim else t.view(1) for t in filled]) if filled else None
    return joined


def same_bits(ours: Tensors, reference: Tensors) -> Comparison:
    """As `judge`, with nothing allowed: every tensor must be bit for bit the reference's."""
    found = []
    for name, theirs in reference.items():
        mine = ours.get(name)
        equal = mine is theirs if mine is None or theirs is None else torch.equal(mine, theirs)
        error = 0.0 if equal else relative_error(mine, theirs) or math.inf
        found.append(Comparison(name, error, 0.0, len(reference)))
    if not found or ours.keys() != reference.keys():
        return Comparison("not the same tensors", math.inf, 0.0, len(reference))
    return max(found, key=lambda one: one.error)


Function = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""From inputs by name to outputs by name, differentiable."""


def compare_functions(
    fast: Function,
    plain: Function,
    inputs: Mapping[str, Tensor],
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    frozen: Collection[str] = (),
) -> Comparison:
    """Outputs, and the gradients of all floating inputs that are not `frozen`, of a fast and a plain function.

    Inputs are rounded to `dtype` first, so that all sides begin with the same numbers; the plain function then runs in
    float64. What comes back from behind the outputs is random.
    """
    rounded = {name: _to(value, device, dtype) for name, value in inputs.items()}
    behind: dict[str, Tensor] = {}
    reference = results(plain, rounded, torch.float64, frozen, generator, behind)
    ours = results(fast, rounded, dtype, frozen, generator, behind)
    same = None
    if dtype not in LIMITS:
        same = results(plain, rounded, dtype, frozen, generator, behind)
    return judge(ours, reference, dtype, same)


def results(
    function: Function,
    inputs: Mapping[str, Tensor],
    dtype: torch.dtype,
    frozen: Collection[str],
    generator: torch.Generator,
    behind: dict[str, Tensor],
) -> dict[str, Tensor | None]:
    """Outputs of `function` on `inputs` in `dtype`, and gradients as `d NAME`; `behind` remembers what came back."""
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    learnt = [name for name, value in given.items() if value.is_floating_point() and name not in frozen]
    for name in learnt:
        given[name] = given[name].detach().clone().requires_grad_()
    outputs = function(given)
    total = torch.zeros((), dtype=torch.float64, device=next(iter(outputs.values())).device)
    for name, value in outputs.items():
        if name not in behind:
            shape = value.shape
            drawn = (
                torch.randn(shape, generator=generator, dtype=torch.float64) if shape else torch.ones(shape).double()
            )
            behind[name] = drawn.to(value.device)
        total = total + (value * behind[name].to(value.dtype)).sum()
    found = torch.autograd.grad(total, [given[name] for name in learnt], allow_unused=True)
    gradients = {f"d {name}": gradient for name, gradient in zip(learnt, found, strict=True)}
    return {**{name: value.detach() for name, value in outputs.items()}, **gradients}


def _leaks(ours: Tensor | None, reference: Tensor | None) -> bool:
    """Whether a row [D] of zeros in a reference [N, D] is not one in ours."""
    if ours is None or reference is None or reference.ndim != 2 or ours.shape != reference.shape:
        return False
    return bool(ours[~reference.any(1)].any())


def _floor(dtype: torch.dtype) -> float:
    return _NOISE[dtype] / RATIO if dtype in LIMITS else _NOISE[dtype]


def _to(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return value.to(device).to(dtype) if value.is_floating_point() else value.to(device)
