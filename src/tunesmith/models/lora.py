"""LoRA layers: what one computes, and putting them into a base.

A `LoraLinear` stands where an `nn.Linear` (or GPT-2's `Conv1D`, or a layer on quantised weights) stood, holds that
layer frozen inside as `base`, and initialises as PEFT does (`lora_init`). With `magnitude` it is a DoRA layer.

One initialised from its weight starts at `s B₀ A₀ ≠ 0`, and keeps A₀ and B₀ beside A and B: it adds `s (B A - B₀ A₀)`
to the weight as it is. Taking `s B₀ A₀` out of the weight, as the papers have it, is the same in real numbers, but in
half precision the rest would be rounded once more, and what is saved for the original base would not be what was
trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import RecipeError
from tunesmith.models.lora_init import FROM_WEIGHTS, from_weight, random_a
from tunesmith.models.lora_targets import (
    ALL_LINEAR,
    by_pattern,
    check_patterns,
    layer_shape,
    saved_names,
    saved_paths,
    select_targets,
    target_names,
)
from tunesmith.models.own_weights import OwnWeights
from tunesmith.models.switching import switched_off
from tunesmith.ops.dora_linear import dora_combine, dora_linear, row_norms
from tunesmith.ops.lora_linear import lora_linear, lora_reference
from tunesmith.recipe.schema import Method


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What an adapter is made of; the same values that PEFT's `LoraConfig` stores.

    `target_modules` is all-linear, a regular expression for whole paths, or names. `rank_pattern` and `alpha_pattern`
    hold other values for modules whose path ends in a match. `tie_saved`: embeddings and head of a tied base, both
    saved in full, train one weight (PEFT's `ensure_weight_tying`).
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    use_rslora: bool = False
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    modules_to_save: tuple[str, ...] = ()
    use_dora: bool = False
    init: str = "default"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    last_layers: int | None = None
    tie_saved: bool = False

    @classmethod
    def of_method(cls, method: Method) -> LoraSettings:
        """A recipe's method."""
        return cls(
            rank=method.rank,
            alpha=2.0 * method.rank if method.alpha == "auto" else float(method.alpha),
            dropout=method.dropout,
            use_rslora=method.use_rslora,
            target_modules=_names(method.target_modules),
            modules_to_save=tuple(method.modules_to_save),
            use_dora=method.use_dora,
            init=method.init,
            rank_pattern=dict(method.rank_pattern),
            alpha_pattern=dict(method.alpha_pattern),
            last_layers=method.last_layers,
        )

    @property
    def scaling(self) -> float:
        return self.alpha / math.sqrt(self.rank) if self.use_rslora else self.alpha / self.rank

    def of_layer(self, path: str) -> LoraSettings:
        """The settings of the layer at `path`, its patterns resolved."""
        return replace(
            self,
            rank=by_pattern(self.rank_pattern, path, self.rank),
            alpha=by_pattern(self.alpha_pattern, path, self.alpha),
            rank_pattern={},
            alpha_pattern={},
        )


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trained low-rank update. `lora_A` [r, in] and `lora_B` [out, r] are at least fp32.

    Attributes
    ----------
    base: the frozen layer.
    magnitude: norms [out] of the rows, learnt, for DoRA; else None.
    initial_a, initial_b: what A and B were at the start, where they came from the weight; else None.
    scaling, dropout: `s`, and the share of the update's inputs dropped in training.
    enabled: without it the layer answers as the base did before it was adapted.
    conv1d: whether `base` holds its weight transposed.
    quantized: whether `base` has no plain weight; it then computes its own product, as does one with `own_product`.
    """

    initial_a: Tensor | None
    initial_b: Tensor | None

    def __init__(self, base: Any, settings: LoraSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.conv1d = isinstance(base, Conv1D)
        self.quantized = hasattr(base, "dequantized")
        self.scaling, self.dropout = settings.scaling, settings.dropout
        self.enabled = True
        weight, rank = self.weight, settings.rank
        out_features, in_features = layer_shape(base)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        from_start = settings.init in FROM_WEIGHTS
        if from_start:
            a, b = from_weight(settings.init, weight.to(dtype), rank, self.scaling)
        else:
            a = random_a(settings.init, (rank, in_features), dtype, generator or torch.default_generator)
            b = torch.zeros(out_features, rank, dtype=dtype)
        self.lora_A = nn.Parameter(a.to(weight.device))
        self.lora_B = nn.Parameter(b.to(weight.device))
        self.register_buffer("initial_a", self.lora_A.detach().clone() if from_start else None, persistent=False)
        self.register_buffer("initial_b", self.lora_B.detach().clone() if from_start else None, persistent=False)
        self.magnitude: nn.Parameter | None = None
        self._kept_norms: tuple[tuple[int, int], Tensor] | None = None
        if settings.use_dora:
            self.magnitude = nn.Parameter(torch.linalg.vector_norm(weight.detach().to(dtype).contiguous(), dim=1))

    @property
    def weight(self) -> Tensor:
        """The frozen weight [out, in]."""
        if self.quantized:
            return self.base.dequantized()  # type: ignore[no-any-return]
        weight: Tensor = self.base.weight
        return weight.t() if self.conv1d else weight

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of all that is added to the weight, differentiable: A [2r, in] above A₀ and B [out, 2r] beside -B₀
        where the start came from the weight, else A [r, in] and B [out, r] themselves."""
        if self.initial_a is None or self.initial_b is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.initial_a]), torch.cat([self.lora_B, -self.initial_b], dim=1)

    @property
    def merged_weight(self) -> Tensor:
        """The weight [out, in] of the layer as it is, `W + s B A` (with DoRA its rows rescaled), differentiable.

        In the base's dtype, summed in the adapter's. Switched off, it is the base's.
        """
        weight = self.weight
        if not self.enabled:
            return weight
        a, b = self.factors
        merged = weight.to(a.dtype) + self.scaling * (b @ a)
        if self.magnitude is not None:
            merged = merged * (self.magnitude / self._norms())[:, None]
        return merged.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        a, b = self.factors
        dropping = self.dropout > 0 and self.training
        # Few tokens (decoding): summing the weights would cost more than the two thin products.
        many = x.numel() // x.shape[-1] >= 4 * a.shape[0]
        if self.magnitude is not None:
            if many and not dropping and not self.quantized:
                return dora_linear(x, self.weight, self.base.bias, a, b, self.magnitude, self.scaling)
            return self._dora(x, a, b, self.magnitude, dropping)
        if dropping or self.quantized or getattr(self.base, "own_product", False):
            kept = F.dropout(x.to(a.dtype), self.dropout) if dropping else x.to(a.dtype)
            update = F.linear(F.linear(kept, a), b) * self.scaling
            return self.base(x) + update.to(x.dtype)  # type: ignore[no-any-return]
        form = lora_linear if many else lora_reference
        return form(x, self.weight, self.base.bias, a, b, self.scaling)

    def train(self, mode: bool = True) -> LoraLinear:
        self._kept_norms = None
        return super().train(mode)

    def _dora(self, x: Tensor, a: Tensor, b: Tensor, magnitude: Tensor, dropping: bool) -> Tensor:
        """DoRA by plain products. With dropout `y = W x + b + (m/n - 1) W x̃ + (m/n) s B A x̃`, as PEFT has it."""
        scale = magnitude / self._norms()
        if not dropping:
            return dora_combine(self._product(x), x, self.base.bias, a, b, scale, self.scaling)
        kept = F.dropout(x.to(a.dtype), self.dropout)
        plain = self._product(kept.to(x.dtype)).to(kept.dtype)
        update = F.linear(F.linear(kept, a), b) * self.scaling
        return self.base(x) + ((scale - 1) * plain + scale * update).to(x.dtype)  # type: ignore[no-any-return]

    def _product(self, x: Tensor) -> Tensor:
        """`x Wᵀ`, without bias."""
        if not self.quantized:
            return F.linear(x, self.weight)
        out: Tensor = self.base(x)
        return out if self.base.bias is None else out - self.base.bias

    def _norms(self) -> Tensor:
        """Norms [out] of the rows of `W + s B A`, a constant; kept while answering, as it takes all weights."""
        versions = (self.lora_A._version, self.lora_B._version)
        if not self.training and self._kept_norms is not None and self._kept_norms[0] == versions:
            return self._kept_norms[1].to(self.lora_A.device)
        norms = row_norms(self.weight, *self.factors, self.scaling)
        if not self.training:
            self._kept_norms = (versions, norms)
        return norms


@dataclass(frozen=True, slots=True)
class Attached:
    """What `attach_lora` did: settings with explicit targets, layers by module path, fully trained modules by path."""

    settings: LoraSettings
    layers: dict[str, LoraLinear]
    own: OwnWeights

    @property
    def saved(self) -> dict[str, nn.Module]:
        """Modules trained in full, by path."""
        return self.own.modules

    def switched_off(self) -> AbstractContextManager[None]:
        """Within this context the model answers as the base did before it was adapted."""
        return switched_off(self.layers, self.own)


def attach_lora(model: Any, settings: LoraSettings, seed: int, *, any_rank: bool = False) -> Attached:
    """Freeze `model`, give the targets a LoRA update and make `modules_to_save` trainable; returns what was done.

    The same weights, settings and seed give the same layers, so that a checkpoint needs only what was trained.
    `any_rank` allows ranks larger than a layer, as files of other tools may have them.
    Raises `RecipeError` for unknown names (naming the nearest) and for a rank larger than a layer.
    """
    model.requires_grad_(False)
    saved = saved_paths(model, settings.modules_to_save)
    targets = select_targets(model, settings.target_modules, saved, settings.last_layers)
    check_patterns(settings.rank_pattern, targets, "method.rank_pattern")
    check_patterns(settings.alpha_pattern, targets, "method.alpha_pattern")
    of_layers = {path: settings.of_layer(path) for path in targets}
    for path, module in targets.items():
        _check_layer(path, module, of_layers[path], any_rank)
    explicit = replace(
        settings,
        target_modules=target_names(model, settings.target_modules, targets),
        modules_to_save=saved_names(model, settings.modules_to_save, saved),
        last_layers=None,
    )
    generator = torch.Generator().manual_seed(seed)
    layers = {path: LoraLinear(module, of_layers[path], generator) for path, module in targets.items()}
    for path, layer in layers.items():
        layer.train(model.training)
        model.set_submodule(path, layer)
    return Attached(explicit, layers, OwnWeights(model, saved, tied=settings.tie_saved))


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _names(given: str | Sequence[str]) -> str | tuple[str, ...]:
    return given if isinstance(given, str) else tuple(given)


def _check_layer(path: str, module: Any, settings: LoraSettings, any_rank: bool) -> None:
    rank, smallest = settings.rank, min(layer_shape(module))
    if rank < 1 or (rank > smallest and not any_rank):
        raise RecipeError(
            f"rank {rank} is below 1" if rank < 1 else f"rank {rank} is larger than the layer {path} ({smallest})",
            where="method.rank",
            expected=f"from 1 to {smallest}",
            fix=f"use a rank of at most {smallest}, a rank_pattern for this layer, or method: full",
        )
    if settings.init in FROM_WEIGHTS and hasattr(module, "dequantized"):
        raise RecipeError(
            f"init {settings.init} begins with the main directions of the full weights, and these are quantised",
            where="method.init",
            fix="use init default or gaussian, or quantize: none",
        )
