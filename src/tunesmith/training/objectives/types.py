"""What an objective is: a function from model and batch to a sum of losses.

Sums, not means: the loop adds them over a step's streams and devices and divides once by the summed weights, so how
rows were grouped does not change what is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith.errors import VerificationError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.writing import system_errors
from tunesmith.training.batching import Batch

FILE = "objective.safetensors"
"""Beside the adapter: what an objective trained of its own."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """What an objective says of one batch.

    loss: differentiable scalar, summed over the batch. weight: what the sum is to be divided by (supervised tokens,
    pairs), known without waiting for the device. metrics: further sums, divided by the same weight when shown.
    """

    loss: Tensor
    weight: float
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)


Objective = Callable[[LanguageModel, Batch], LossSum]


@dataclass(frozen=True, slots=True)
class BuiltObjective:
    """An objective as a recipe asks for it; call it as any `Objective`.

    Attributes
    ----------
    name: as the recipe gives it.
    pairs: whether rows must be pairs of texts; None where the user's code alone knows.
    module: the user's module, whose parameters that require gradients are trained beside the model's; or None.
    file: the user's file, whose content belongs to what decides results; or None.
    """

    function: Objective
    name: str
    pairs: bool | None = False
    module: nn.Module | None = None
    file: Path | None = None

    def __call__(self, model: LanguageModel, batch: Batch) -> LossSum:
        return self.function(model, batch)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside the model, as `objective.NAME`."""
        if self.module is None:
            return {}
        return {f"objective.{name}": p for name, p in self.module.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers, for checkpoints: the live tensors, to be copied into."""
        return {} if self.module is None else {f"objective.{k}": v for k, v in self.module.state_dict().items()}

    def save(self, folder: Path) -> Path | None:
        """Write the state into `folder`; None where there is none. Raises `ResourceError` where it cannot."""
        state = {name: t.detach().cpu().contiguous().clone() for name, t in self.state().items()}
        if not state:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        with system_errors(folder / FILE):
            save_file(state, folder / FILE, metadata={"objective": self.name})
        return folder / FILE

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Put a saved state back, in place. Raises `VerificationError` where it is missing, damaged or another's."""
        live = self.state()
        if not live:
            return
        path = folder / FILE
        try:
            saved = load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise VerificationError(f"what the objective learnt cannot be read: {error}", where=str(path)) from error
        if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in live.items()}:
            raise VerificationError(
                "the saved tensors are not those of this objective",
                where=str(path),
                expected=", ".join(f"{k} {list(v.shape)}" for k, v in live.items()),
                fix="use the objective and the options it was trained with",
            )
        for name, tensor in saved.items():
            live[name].copy_(tensor)
