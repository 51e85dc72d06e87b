"""Checks of the optimiser step: our AdamW, flat and not, against `torch.optim.AdamW` in float64.

Compared is what the parameters have changed by after some steps, with gradients of a summed loss that are divided,
measured and clipped on the way, as the training step has it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tunesmith.training.gate.compare import Comparison, judge
from tunesmith.training.gate.operations import randn
from tunesmith.training.gate.types import Check
from tunesmith.training.optimizers import make_optimizer
from tunesmith.training.plan import TrainingPlan

GROUP = "optimiser"
_SHAPES = {"layers.0.lora_A": (4, 33), "layers.0.lora_B": (19, 4), "norm.weight": (33,), "bias": (19,)}
_STEPS = 5
_WEIGHT = 7.0
"""Weight of the summed losses, by which gradients are divided."""
_MAX_NORM = 1.5
_PLAN = TrainingPlan(
    steps=_STEPS, batch_size=1, learning_rate=1e-2, seed=0, weight_decay=0.1, betas=(0.9, 0.98), lora_plus_ratio=4.0
)


def optimizer_checks() -> list[Check]:
    """AdamW with weight decay on matrices, LoRA+ and clipping."""
    return [
        Check("AdamW, flat buffers", GROUP, partial(_adamw, flat=True)),
        Check("AdamW, tensor by tensor", GROUP, partial(_adamw, flat=False)),
    ]


def _adamw(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, flat: bool) -> Comparison:
    begin = {name: randn(generator, *shape, scale=0.1).to(device).to(dtype) for name, shape in _SHAPES.items()}
    gradients = [
        {name: randn(generator, *shape).to(device).to(dtype) for name, shape in _SHAPES.items()} for _ in range(_STEPS)
    ]
    ours = {name: nn.Parameter(value.clone()) for name, value in begin.items()}
    optimizer = make_optimizer(ours, _PLAN, flat=flat)
    norms: list[Tensor] = []
    for step in gradients:
        optimizer.zero_grad()
        for name, gradient in step.items():
            if ours[name].grad is None:
                ours[name].grad = gradient.clone()
            else:
                ours[name].grad.copy_(gradient)  # type: ignore[union-attr]
        norms.append(optimizer.clip(_MAX_NORM, 1 / _WEIGHT))
        optimizer.step()
    theirs, their_norms = _plain_adamw(begin, gradients)
    changed: dict[str, Tensor | None] = {name: ours[name].detach().double() - begin[name].double() for name in begin}
    changed["gradient norms"] = torch.stack(norms)
    return judge(changed, {**theirs, "gradient norms": their_norms}, dtype)


def _plain_adamw(begin: dict[str, Tensor], gradients: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """What `torch` makes of it in float64: changes by name, and the norms [steps] before clipping."""
    theirs = {name: nn.Parameter(value.double().clone()) for name, value in begin.items()}
    groups = [
        {
            "params": [parameter],
            "lr": _PLAN.learning_rate * (_PLAN.lora_plus_ratio if "lora_B" in name else 1.0),
            "weight_decay": _PLAN.weight_decay if parameter.ndim > 1 else 0.0,
        }
        for name, parameter in theirs.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=_PLAN.betas, eps=_PLAN.epsilon, foreach=False, fused=False)
    norms = []
    for step in gradients:
        for name, gradient in step.items():
            theirs[name].grad = gradient.double() / _WEIGHT
        norms.append(torch.nn.utils.clip_grad_norm_(list(theirs.values()), _MAX_NORM))
        optimizer.step()
    return {name: p.detach() - begin[name].double() for name, p in theirs.items()}, torch.stack(norms)
