"""LoRA layers and which modules get one.

A `LoraLinear` stands where an `nn.Linear` (or GPT-2's `Conv1D`) stood, holds that layer frozen inside as `base`, and
initialises as PEFT does: A uniform (Kaiming, a=√5), B zero, so that an untrained adapter changes nothing.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import RecipeError
from tunesmith.ops.lora_linear import lora_linear, lora_reference


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What an adapter is made of; the same values that PEFT's `LoraConfig` stores."""

    rank: int
    alpha: float
    dropout: float = 0.0
    use_rslora: bool = False
    target_modules: str | tuple[str, ...] = "all-linear"
    modules_to_save: tuple[str, ...] = ()

    @property
    def scaling(self) -> float:
        return self.alpha / math.sqrt(self.rank) if self.use_rslora else self.alpha / self.rank


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trained low-rank update. `A` [r, in] and `B` [out, r] are at least fp32."""

    def __init__(self, base: nn.Linear | Conv1D, settings: LoraSettings) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.conv1d = isinstance(base, Conv1D)
        weight = base.weight
        out_features, in_features = reversed(weight.shape) if self.conv1d else weight.shape
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.lora_A = nn.Parameter(torch.empty(settings.rank, in_features, dtype=dtype, device=weight.device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, settings.rank, dtype=dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scaling, self.dropout = settings.scaling, settings.dropout
        self.enabled = True

    @property
    def weight(self) -> Tensor:
        """The frozen weight [out, in]."""
        return self.base.weight.t() if self.conv1d else self.base.weight

    @property
    def merged_weight(self) -> Tensor:
        """`W + s B A` in the base's dtype, summed in the adapter's."""
        update = self.scaling * (self.lora_B @ self.lora_A)
        return (self.weight.to(update.dtype) + update).to(self.base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        if self.dropout and self.training:
            update = F.linear(F.linear(F.dropout(x.to(self.lora_A.dtype), self.dropout), self.lora_A), self.lora_B)
            return self.base(x) + (update * self.scaling).to(x.dtype)  # type: ignore[no-any-return]
        # Few tokens (decoding): summing the weights would cost more than the two thin products.
        form = lora_linear if x.numel() // x.shape[-1] >= 4 * self.lora_A.shape[0] else lora_reference
        return form(x, self.weight, self.base.bias, self.lora_A, self.lora_B, self.scaling)


@dataclass(frozen=True, slots=True)
class Attached:
    """What `attach_lora` did: settings with explicit targets, layers by module path, fully trained modules by path."""

    settings: LoraSettings
    layers: dict[str, LoraLinear]
    saved: dict[str, nn.Module] = field(default_factory=dict)


def attach_lora(model: Any, settings: LoraSettings, seed: int) -> Attached:
    """Freeze `model`, give the targets a LoRA update and make `modules_to_save` trainable; returns what was done.

    Raises `RecipeError` for unknown targets (naming the nearest) and for a rank larger than a layer.
    """
    model.requires_grad_(False)
    targets = dict(_targets(model, settings.target_modules))
    _check(model, settings, targets)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        layers = {name: LoraLinear(module, settings) for name, module in targets.items()}
    finally:
        torch.random.set_rng_state(state)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    saved = {}
    for wanted in settings.modules_to_save:
        for name, module in list(model.named_modules()):
            if _matches(name, wanted):
                saved[name] = _own_parameters(model, name, module)
    explicit = tuple(sorted({name.rpartition(".")[2] for name in layers}))
    if settings.target_modules != "all-linear":
        explicit = tuple(settings.target_modules)
    elif _ambiguous(model, explicit, layers):
        explicit = tuple(sorted(layers))
    return Attached(
        LoraSettings(
            settings.rank,
            settings.alpha,
            settings.dropout,
            settings.use_rslora,
            explicit,
            settings.modules_to_save,
        ),
        layers,
        saved,
    )


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _targets(model: Any, wanted: str | Sequence[str]) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        if wanted == "all-linear":
            if module is not head:
                yield name, module
        elif any(_matches(name, w) for w in wanted):
            yield name, module


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith("." + wanted)


def _ambiguous(model: Any, ends: Sequence[str], layers: dict[str, LoraLinear]) -> bool:
    """Whether a module that got no adapter would also be meant by these short names."""
    return any(
        isinstance(module, nn.Linear | Conv1D) and name not in layers and any(_matches(name, end) for end in ends)
        for name, module in model.named_modules()
        if not name.endswith(".base")
    )


def _check(model: Any, settings: LoraSettings, targets: dict[str, nn.Linear | Conv1D]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    ends = sorted({name.rpartition(".")[2] for name in names} - {""})
    for key, wanted in (
        ("method.target_modules", () if settings.target_modules == "all-linear" else settings.target_modules),
        ("method.modules_to_save", settings.modules_to_save),
    ):
        for name in wanted:
            hits = targets if key.endswith("target_modules") else names
            if not any(_matches(hit, name) for hit in hits):
                near = difflib.get_close_matches(name, ends, n=3)
                raise RecipeError(
                    f"the base has no module {name!r} that can be adapted",
                    where=key,
                    expected="one of " + ", ".join(near or ends[:12]),
                )
    if not targets:
        raise RecipeError("no module of the base can be adapted", where="method.target_modules")
    smallest = min(min(module.weight.shape) for module in targets.values())
    if settings.rank > smallest:
        raise RecipeError(
            f"rank {settings.rank} is larger than the smallest adapted layer ({smallest})",
            where="method.rank",
            fix=f"use a rank of at most {smallest}, or method: full",
        )


def _own_parameters(model: Any, name: str, module: nn.Module) -> nn.Module:
    """Make a module trainable on weights of its own: a head tied to the embeddings is untied, as PEFT does."""
    for key, parameter in list(module.named_parameters(recurse=True)):
        path, _, leaf = key.rpartition(".")
        holder = module.get_submodule(path) if path else module
        setattr(holder, leaf, nn.Parameter(parameter.detach().clone(), requires_grad=True))
    if module is model.get_output_embeddings() and getattr(model.config, "tie_word_embeddings", False):
        model.config.tie_word_embeddings = False
    return module
