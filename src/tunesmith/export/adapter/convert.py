"""Any adapter as plain LoRA of one rank and one alpha, which every server knows.

Exact, up to the rounding of 32 bits: LoRA that began with parts of the weights (PiSSA, OLoRA: the difference to the
base's own weights has twice the rank), rsLoRA (another alpha), single ranks and alphas (zeros fill up the rank, B takes
the scale). Everything else (DoRA rescales whole rows; LoHa, LoKr and others are of high rank) has only a nearest LoRA,
which is made on request, with its error said: the relative Frobenius distance from what the method adds to the weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import EngineError, RecipeError
from tunesmith.export.adapter.low_rank import LowRank, best_part, left_over, of_matrix, values_of
from tunesmith.export.types import Source, StepError
from tunesmith.models.adapter import adapter_config, adapter_tensors, read_adapter, unsupported
from tunesmith.models.load import LoadedBase
from tunesmith.models.lora_init import FROM_WEIGHTS
from tunesmith.models.lora_targets import by_pattern
from tunesmith.models.methods import LoraTuning, Tuning, WithCard
from tunesmith.models.peft_method import PeftTuning
from tunesmith.ops.dora_linear import row_norms

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_STEP = "conversion to plain LoRA"
_MERGE = "merge it into its base instead: tunesmith export --to merged"
# What `peft` raises for layers that cannot be merged: there is no common ancestor but Exception.
_FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Converted:
    """An adapter as plain LoRA.

    Attributes
    ----------
    layers: what is added to each weight [out, in], by the module's path; all of one rank, and to be scaled by `scale`.
    scale: alpha over rank.
    error: relative Frobenius distance of all that is added from what the method adds; 0 where nothing was left out.
    worst: the module with the largest such distance, and it; None where nothing was left out.
    changes: what was done, in words; empty where the adapter was plain LoRA already.
    conv1d: whether the base holds its weights transposed.
    """

    layers: Mapping[str, LowRank]
    scale: float
    error: float
    worst: tuple[str, float] | None
    changes: tuple[str, ...]
    conv1d: bool

    @property
    def rank(self) -> int:
        return next(iter(self.layers.values())).rank

    @property
    def alpha(self) -> float:
        return self.scale * self.rank

    @property
    def exact(self) -> bool:
        return self.worst is None


@torch.no_grad()
def to_plain_lora(source: Source, rank: int | None = None, max_error: float | None = None) -> Converted:
    """The adapter as plain LoRA; see above.

    rank, max_error: for a nearest LoRA, of this rank, or of the lowest with at most this relative error in every layer.

    Raises `RecipeError` for a rank or error that is none, `StepError` for what cannot be converted, or only nearly
    where neither is given.
    """
    if rank is not None and rank < 1:
        raise RecipeError(f"rank {rank} is below 1", where="--rank", expected="1 or more")
    if max_error is not None and not 0 < max_error < 1:
        raise RecipeError(f"{max_error} is no relative error", where="--max-error", expected="between 0 and 1")
    if not source.is_adapter:
        raise StepError(_STEP, "the model was tuned in full, so there is no adapter", "export it as merged")
    config, tensors = read_adapter(source.tuned)
    _refuse_whole_modules(config, tensors)
    changes: list[str] = []
    if config["peft_type"] != "LORA" or config.get("use_dora"):
        return _nearest(source, config, rank, max_error)
    if config.get("init_lora_weights") in FROM_WEIGHTS:
        changes.append(f"its start ({config['init_lora_weights']}) taken out, which doubles the rank")
        config, tensors = _without_start(source)
    exact = _one_rank(config, tensors, changes)
    if rank is None and max_error is None:
        return exact
    return _lowered(exact, rank, max_error)


def _refuse_whole_modules(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise `StepError` for what no low-rank update of linear layers holds; all of it at once."""
    reasons = []
    if config.get("modules_to_save"):
        reasons.append(f"{', '.join(config['modules_to_save'])} trained in full, which no low-rank update holds")
    if config["peft_type"] == "LORA":
        whole = sorted(
            name.removeprefix(_PREFIX) for name in tensors if ".lora_" not in name and not config.get("modules_to_save")
        )
        if whole:
            reasons.append(f"weights in full: {', '.join(whole)}")
        reasons += unsupported(dict(config), tensors)
    if config["peft_type"].startswith("TUNESMITH"):
        reasons.append("a non-linearity, so it is no change of weights")
    if reasons:
        instead = "keep base and adapter beside each other" if "non-linearity" in reasons[-1] else _MERGE
        raise StepError(_STEP, "the adapter has " + "; ".join(reasons), instead)


def _without_start(source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of the difference to the base's own weights."""
    _, tuning = source.open()
    if not isinstance(tuning, LoraTuning):
        raise EngineError("the adapter is not LoRA", where=str(source.tuned))
    return adapter_config(tuning.attached, "", None, False), adapter_tensors(tuning.attached)


def _one_rank(config: Mapping[str, Any], tensors: Mapping[str, Tensor], changes: list[str]) -> Converted:
    """Zeros fill up the rank; B takes what its layer is scaled by otherwise than most."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    found: dict[str, tuple[LowRank, float]] = {}
    for name in sorted(key for key in tensors if key.endswith(_A)):
        path = name.removeprefix(_PREFIX).removesuffix(_A)
        one = LowRank(tensors[name].float(), tensors[name.removesuffix(_A) + _B].float())
        alpha = float(by_pattern(alphas, path, config["lora_alpha"]))
        found[path] = one, alpha / (math.sqrt(one.rank) if config.get("use_rslora") else one.rank)
    if not found:
        raise StepError(_STEP, "the adapter changes no linear layer", _MERGE)
    scale = Counter(of_layer for _, of_layer in found.values()).most_common(1)[0][0] or 1.0
    rank = max(one.rank for one, _ in found.values())
    if config.get("use_rslora"):
        changes.append("rsLoRA's alpha/sqrt(rank) written as alpha/rank, with another alpha")
    if ranks:
        changes.append(f"all ranks filled up to {rank} with zeros")
    if any(of_layer != scale for _, of_layer in found.values()):
        changes.append("other scales of single layers multiplied into B")
    layers = {
        path: LowRank(one.a, one.b if of_layer == scale else one.b * (of_layer / scale)).padded(rank)
        for path, (one, of_layer) in found.items()
    }
    return Converted(layers, scale, 0.0, None, tuple(changes), bool(config.get("fan_in_fan_out")))


def _lowered(exact: Converted, rank: int | None, max_error: float | None) -> Converted:
    """The nearest adapter of a lower rank."""
    spectra = {path: values_of(layer) for path, layer in exact.layers.items()}
    wanted = {path: _rank_of(values, rank, max_error) for path, values in spectra.items()}
    lowest = max(wanted.values())
    if lowest >= exact.rank:
        return exact
    layers = {path: best_part(layer, lowest) for path, layer in exact.layers.items()}
    found = _measured(
        {path: (left_over(spectra[path], lowest), float(spectra[path].square().sum())) for path in layers}
    )
    changes = (*exact.changes, f"cut from rank {exact.rank} to {lowest}")
    return Converted(layers, exact.scale, *found, changes, exact.conv1d)


def _rank_of(values: Tensor, rank: int | None, max_error: float | None) -> int:
    total = float(values.square().sum())
    within = len(values)
    if max_error is not None:
        within = next(k for k in range(len(values) + 1) if left_over(values, k) <= max_error**2 * total)
    return max(1, min(within, rank if rank is not None else len(values)))


def _nearest(source: Source, config: Mapping[str, Any], rank: int | None, max_error: float | None) -> Converted:
    """The nearest plain LoRA to a method that is none."""
    kind = "DoRA" if config.get("use_dora") else config["peft_type"]
    why = "rescales whole rows of the weights" if kind == "DoRA" else "is no low-rank update"
    if rank is None and max_error is None:
        raise StepError(
            _STEP,
            f"{kind} {why}, so plain LoRA can only come near it",
            f"say how near, with --rank N or --max-error SHARE; or {_MERGE}",
        )
    found, spectra = {}, {}
    conv1d = False
    for path, change, transposed in changes_of(*source.open()):
        found[path], spectra[path] = of_matrix(change, rank, max_error)
        conv1d = conv1d or transposed
    if not found:
        raise StepError(_STEP, f"{kind} changes no linear layer here", _MERGE)
    highest = max(one.rank for one in found.values())
    layers = {path: one.padded(highest) for path, one in found.items()}
    error = _measured(
        {path: (left_over(spectra[path], found[path].rank), float(spectra[path].square().sum())) for path in found}
    )
    return Converted(layers, 1.0, *error, (f"{kind} by its nearest LoRA of rank {highest}",), conv1d)


def _measured(squares: Mapping[str, tuple[float, float]]) -> tuple[float, tuple[str, float]]:
    """Relative error of all layers together, and the worst; from (what is left out, all of it), squared."""
    error = math.sqrt(sum(out for out, _ in squares.values()) / max(sum(all_ for _, all_ in squares.values()), 1e-300))
    each = {path: math.sqrt(out / max(all_, 1e-300)) for path, (out, all_) in squares.items()}
    worst = max(each, key=each.__getitem__)
    return error, (worst, each[worst])


def changes_of(base: LoadedBase, tuning: Tuning) -> Iterator[tuple[str, Tensor, bool]]:
    """What a tuned model adds to each weight [out, in], by the module's path, and whether the base holds it transposed.

    The model may end in 32 bits.
    """
    if isinstance(tuning, LoraTuning):
        for path, layer in tuning.attached.layers.items():
            a, b = layer.factors
            change = layer.scaling * (b @ a)
            if layer.magnitude is not None:
                weight = layer.weight.to(a.dtype)
                rescaled = (layer.magnitude / row_norms(weight, a, b, layer.scaling))[:, None]
                change = (weight + change) * rescaled - weight
            yield path, change, layer.conv1d
        return
    if not (isinstance(tuning, WithCard) and isinstance(tuning.tuning, PeftTuning)):
        raise StepError(_STEP, "the adapter is no change of weights", "keep base and adapter beside each other")
    base.model.float()
    for path, module in base.model.named_modules():
        if isinstance(module, BaseTunerLayer):
            inner = module.get_base_layer()
            if not isinstance(inner, nn.Linear | Conv1D):
                raise StepError(_STEP, f"it changes {path}, which is no linear layer", _MERGE)
            yield path, _change_of(path, module, inner), isinstance(inner, Conv1D)


def _change_of(path: str, module: Any, inner: Any) -> Tensor:
    """What `peft` makes of a layer's weight when it merges; bias and all else must stay."""
    before = inner.weight.detach().clone()
    bias = None if inner.bias is None else inner.bias.detach().clone()
    try:
        module.merge(safe_merge=True)
    except _FAILURES as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StepError(_STEP, f"peft cannot merge it: {first}", "keep base and adapter beside each other") from error
    if bias is not None and not torch.equal(bias, inner.bias):
        raise StepError(_STEP, f"it changes the bias of {path}, which LoRA leaves", _MERGE)
    change: Tensor = inner.weight.detach() - before
    inner.weight.data.copy_(before)
    return change.t() if isinstance(inner, Conv1D) else change


@dataclass(frozen=True, slots=True)
class Convertible:
    """Whether an adapter can become plain LoRA, told without loading its base: plain, exact, nearest or no; and why."""

    how: str
    words: str


def convertible(source: Source) -> Convertible:
    """What `to_plain_lora` would do. Raises `EngineError` for an adapter that cannot be read."""
    config, tensors = read_adapter(source.tuned)
    try:
        _refuse_whole_modules(config, tensors)
        if config["peft_type"] != "LORA" or config.get("use_dora"):
            kind = "DoRA" if config.get("use_dora") else config["peft_type"]
            return Convertible("nearest", f"{kind} has only a nearest LoRA: give --rank or --max-error")
        changes: list[str] = []
        if config.get("init_lora_weights") in FROM_WEIGHTS:
            changes.append(f"its start ({config['init_lora_weights']}) taken out, which doubles the rank")
        _one_rank(config, tensors, changes)
    except StepError as error:
        return Convertible("no", error.reason)
    return Convertible("exact", "; ".join(changes)) if changes else Convertible("plain", "it is plain LoRA already")
