"""AWQ (Lin et al. 2023, arXiv 2306.00978): inputs that are large in use get finer weights.

A layer's inputs are divided by s and its weights multiplied by it, which changes nothing before rounding and afterwards
shrinks the error of the inputs with large s. s is |x|ᵅ, with the α of least error on calibration tokens. The division
goes into the module that gives the inputs, where that is exact: a norm's weight, or the linear layer before. Whether it
is, is found by trying: the decoder layer must give what it gave before, else the scaling is undone and not used.

A norm's new weight is rounded to the type that it is stored in first, and s is what this makes of it, so the scaling
is exact in the file, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.export.quantise.calibration import Moments, Shared, Walk
from tunesmith.export.quantise.gptq_rounding import output_error
from tunesmith.export.quantise.grid import NARROWED, Grid, rtn
from tunesmith.export.quantise.layers import set_weight, weight_of

_STEPS = 20
_SHARES = (1.0, 0.85, 0.7)
"""Of a group's range that are tried while α is looked for; all of them for what was best, as they take longer."""
_EXACT = 1e-4
"""Relative difference of a decoder layer's output up to which a scaling is the same computation in other steps."""

Fold = Callable[[Tensor], Tensor]
"""Divides what a module gives by s [in] in place and returns the s that this really was."""
Tie = tuple[int, int]
"""Copies and width: so many heads of this width read the same values (grouped queries), so they share their scales."""
_FREE: Tie = (1, 1)


@dataclass(frozen=True, slots=True)
class Scaled:
    """What was done for layers that read the same: the α that was best, or why nothing was."""

    paths: tuple[str, ...]
    alpha: float
    into: str | None
    note: str = ""


@torch.no_grad()
def scale_block(walk: Walk, model: Any, grid: Grid, bits: dict[str, int], stored: torch.dtype) -> list[Scaled]:
    """Scale the linear layers of the walk's present decoder layer, in place; nothing is rounded yet.

    `bits`: of layers by path; those with more than the grid's are not looked at. `stored`: type of norms in the file.
    """
    shared, moments = walk.inputs()
    return [
        _scale(walk, model, one, moments[one.paths[0]], grid, stored)
        for one in shared
        if all(bits[path] == grid.bits for path in one.paths)
    ]


def best_scale(weights: Sequence[Tensor], moments: Moments, grid: Grid, tie: Tie = _FREE) -> tuple[Tensor, float]:
    """s [in], tied, and its α for weights [out, in] that read the same; s is 1 where no scaling is better."""
    size = (moments.size / max(1, moments.tokens)).clamp_min(1e-6)

    def error(s: Tensor, shares: Sequence[float]) -> float:
        return sum(output_error(w, rtn(w * s, grid, shares).values() / s, moments.hessian) for w in weights)

    none = torch.ones_like(size)
    best, alpha, least = none, 0.0, error(none, _SHARES)
    for step in range(1, _STEPS):
        s = _tied(size.pow(step / _STEPS), tie)
        s = s / (s.max() * s.min()).sqrt()
        if (found := error(s, _SHARES)) < least:
            best, alpha, least = s, step / _STEPS, found
    if alpha and error(best, NARROWED) < error(none, NARROWED):
        return best, alpha
    return none, 0.0


def _scale(walk: Walk, model: Any, one: Shared, moments: Moments, grid: Grid, stored: torch.dtype) -> Scaled:
    layers = [walk.block.linears[path] for path in one.paths]
    expected = walk.output()
    found: dict[Tie, tuple[Tensor, float]] = {}
    for path, tie, fold in _folds(walk, model, one, stored):
        if tie not in found:
            found[tie] = best_scale([weight_of(layer) for layer in layers], moments, grid, tie)
        s, alpha = found[tie]
        if alpha == 0:
            continue
        with _Undo([*layers, model.get_submodule(path)]) as undo:
            exact = fold(s)
            for layer in layers:
                set_weight(layer, weight_of(layer) * exact)
            if float((walk.output() - expected).norm()) <= _EXACT * float(expected.norm()):
                undo.keep()
                return Scaled(one.paths, alpha, path)
    better = not found or any(alpha for _, alpha in found.values())
    return Scaled(
        one.paths, 0.0, None, "nothing before it can take the scaling exactly" if better else "no scaling was better"
    )


def _folds(walk: Walk, model: Any, one: Shared, stored: torch.dtype) -> Iterator[tuple[str, Tie, Fold]]:
    """Modules that might take the division, with how s must be tied for it, likeliest first."""
    if one.producer is not None and one.producer not in walk.block.linears:
        norm = model.get_submodule(one.producer)
        if isinstance(getattr(norm, "weight", None), Tensor) and norm.weight.dim() == 1:
            for offset in (0.0, 1.0):  # some norms multiply by 1 + weight
                yield one.producer, _FREE, _into_norm(norm, offset, stored)
    inputs = weight_of(walk.block.linears[one.paths[0]]).shape[1]
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for path in one.before:
        layer = walk.block.linears[path]
        outputs = weight_of(layer).shape[0]
        if outputs == inputs:
            yield path, _FREE, _into_linear(layer, _FREE)
        elif inputs % outputs == 0 and outputs % width == 0:
            tie = inputs // outputs, width
            yield path, tie, _into_linear(layer, tie)


def _tied(s: Tensor, tie: Tie) -> Tensor:
    """Scales that are the same, in the logarithm's mean, for inputs that hold the same values."""
    if tie == _FREE:
        return s
    by_head = s.view(-1, *tie)
    return by_head.log().mean(1, keepdim=True).exp().expand_as(by_head).reshape(-1)


def _into_norm(norm: Any, offset: float, stored: torch.dtype) -> Fold:
    def fold(s: Tensor) -> Tensor:
        before = norm.weight.to(torch.float32) + offset
        after = ((before / s) - offset).to(stored).to(torch.float32) + offset
        exact = torch.where(after == 0, torch.ones_like(s), before / after)
        exact = torch.where(exact > 0, exact, torch.ones_like(s))
        norm.weight.copy_(torch.where(exact == 1, before, after) - offset)
        bias = getattr(norm, "bias", None)
        if bias is not None:
            bias.copy_(bias / exact)
        return exact

    return fold


def _into_linear(layer: Any, tie: Tie) -> Fold:
    def fold(s: Tensor) -> Tensor:
        rows = s.view(-1, *tie)[:, 0].reshape(-1)
        set_weight(layer, weight_of(layer) / rows[:, None])
        if layer.bias is not None:
            layer.bias.copy_(layer.bias / rows)
        return s

    return fold


class _Undo:
    """Puts the parameters of modules back at its end, unless they are to be kept."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._before = [(p, p.detach().clone()) for module in modules for p in module.parameters(recurse=False)]
        self._kept = False

    def keep(self) -> None:
        self._kept = True

    def __enter__(self) -> _Undo:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._kept:
            for parameter, before in self._before:
                parameter.copy_(before)
