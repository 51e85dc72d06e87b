"""Adapters of one base added to one another, by the methods of the `peft` library (`add_weighted_adapter`).

`peft` gets the adapters as plain LoRA of one rank, on layers that have the base's shapes and no weights: none of its
methods looks at these. What each makes of them is said there; in short:

cat: the weighted sum of what the adapters add to the weights, exactly; the ranks add up.
svd: the nearest to that sum of a lower rank.
linear: A and B are added each by itself, so their products mix; the rank stays. Exact for one adapter only.
ties, dare_ties, dare_linear, magnitude_prune: A and B thinned out first, to a share of their values (`density`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from tunesmith.errors import EngineError, RecipeError, TunesmithError, VerificationError
from tunesmith.export.adapter.convert import Converted, to_plain_lora
from tunesmith.export.adapter.low_rank import LowRank, added, values_of
from tunesmith.export.types import Source

How = Literal["linear", "cat", "svd", "ties", "dare_ties", "dare_linear", "magnitude_prune"]
HOWS: tuple[How, ...] = get_args(How)
_THINNING = ("ties", "dare_ties", "dare_linear", "magnitude_prune")
_DENSITY = 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter of a sum, by its name, and its weight."""

    name: str
    source: Source
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Combined:
    """The sum, and how far it is from the exact weighted sum of what the adapters add to the weights.

    distance: relative Frobenius distance; not a fault of methods that are meant to leave something out.
    """

    adapter: Converted
    distance: float
    made: tuple[str, ...]


@torch.no_grad()
def combine(
    parts: Sequence[Part], how: How, *, rank: int | None = None, density: float | None = None, seed: int = 0
) -> Combined:
    """Add adapters to one another.

    rank: of the result, for svd; by default the largest of the parts. density: share of values that stay, for the
    methods that thin out; by default a half. seed: of what dare draws.

    Raises `RecipeError` for settings that do not go together and `VerificationError` for adapters of different bases,
    with everything that is wrong at once; `StepError` for an adapter that is not plain LoRA and cannot become so.
    """
    _refuse_settings(parts, how, rank, density)
    _refuse_other_bases(parts)
    plain = _all_plain(parts)
    largest = max(one.rank for one in plain)
    most = min(rank or largest, sum(one.rank for one in plain))  # more would be zeros
    share = (density if density is not None else _DENSITY) if how in _THINNING else None
    weights = [part.weight for part in parts]
    added_up = [*plain, _nothing(plain[0])] if len(plain) == 1 and how not in ("linear", "cat") else plain
    found = _by_peft(added_up, [*weights, 1.0][: len(added_up)], how, most, largest, share, seed)
    layers = {path: found[path] for path in sorted(found)}
    adapter = Converted(layers, 1.0, 0.0, None, (), plain[0].conv1d)
    made = [
        f"Made of: {', '.join(f'{part.weight:g} x {part.name} ({_where(part.source)})' for part in parts)}",
        f"How: {how}" + (f", density {share:g}" if share is not None else ""),
    ]
    if how.startswith("dare"):
        made.append(f"Seed: {seed}")
    made += [f"{part.name} first: {change}" for part, one in zip(parts, plain, strict=True) for change in one.changes]
    distance = _distance(adapter, plain, weights)
    made.append(f"Relative distance from the exact weighted sum of what they add to the weights: {distance:.2g}")
    return Combined(adapter, distance, tuple(made))


def _refuse_settings(parts: Sequence[Part], how: str, rank: int | None, density: float | None) -> None:
    wrong = []
    if how not in HOWS:
        wrong.append(f"there is no way {how!r} to add adapters: {', '.join(HOWS)}")
    if not parts:
        wrong.append("no adapter is named")
    names = [part.name for part in parts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        wrong.append(f"a name is given twice: {', '.join(twice)}")
    if strange := [part.name for part in parts if not abs(part.weight) < float("inf") or part.weight == 0]:
        wrong.append(f"a weight is zero or no number: {', '.join(strange)}")
    if rank is not None and how != "svd":
        wrong.append("a rank is for svd only; cat adds the ranks up, and the others keep the largest")
    if rank is not None and rank < 1:
        wrong.append(f"rank {rank} is below 1")
    if density is not None and how not in _THINNING:
        wrong.append(f"a density is for {', '.join(_THINNING)} only")
    if density is not None and not 0 < density <= 1:
        wrong.append(f"{density} is no share of values, above 0 and at most 1")
    if wrong:
        raise RecipeError("; ".join(wrong), where="adapters merge")


def _refuse_other_bases(parts: Sequence[Part]) -> None:
    first = parts[0].source
    others = [part for part in parts[1:] if part.source.base_sha256 != first.base_sha256]
    if others:
        told = [f"{part.name}: {part.source.recipe.base.model} ({part.source.base_sha256[:12]}…)" for part in others]
        raise VerificationError(
            "these adapters are of other base weights: " + "; ".join(told),
            where="adapters merge",
            expected=f"the base of {parts[0].name}: {first.recipe.base.model} ({first.base_sha256[:12]}…)",
            fix="add adapters of one base only",
        )


def _all_plain(parts: Sequence[Part]) -> list[Converted]:
    """The parts as plain LoRA; every one that cannot be is told."""
    found, wrong, worst = [], [], None
    for part in parts:
        try:
            found.append(to_plain_lora(part.source))
        except TunesmithError as error:
            wrong.append(f"{part.name}: {error.what}")
            worst = error
    if worst is not None:
        raise EngineError(
            "; ".join(wrong),
            where="adapters merge",
            expected="adapters that are plain LoRA, or can be made so exactly",
            fix="convert them first: tunesmith adapters convert --to lora --rank N; or leave them out",
        ) from worst
    return found


def _by_peft(
    plain: Sequence[Converted],
    weights: Sequence[float],
    how: How,
    svd_rank: int,
    largest: int,
    density: float | None,
    seed: int,
) -> dict[str, LowRank]:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    shapes = {path: (one.b.shape[0], one.a.shape[1]) for part in plain for path, one in part.layers.items()}
    hollow = _hollow(shapes)
    configs = {
        f"part{i}": LoraConfig(
            r=one.rank if how == "cat" else largest,
            lora_alpha=one.scale * (one.rank if how == "cat" else largest),
            target_modules=sorted(one.layers),
        )
        for i, one in enumerate(plain)
    }
    names = list(configs)
    tuner = LoraModel(hollow, {names[0]: configs[names[0]]}, names[0])
    for name in names[1:]:
        tuner.peft_config[name] = configs[name]
        tuner.inject_adapter(hollow, name)
    for name, one in zip(names, plain, strict=True):
        for path, layer in one.layers.items():
            held: Any = hollow.get_submodule(path)
            full = layer if how == "cat" else layer.padded(largest)
            held.lora_A[name].weight.copy_(full.a)
            held.lora_B[name].weight.copy_(full.b)
    options = {"density": density} if density is not None else {}
    if how == "svd":
        options |= {"svd_rank": svd_rank, "svd_full_matrices": False}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        tuner.add_weighted_adapter(names, list(weights), "sum", how, **options)
    config = tuner.peft_config["sum"]
    found = {}
    for path in shapes:
        summed: Any = hollow.get_submodule(path)
        scale = float(summed.scaling["sum"])
        found[path] = LowRank(summed.lora_A["sum"].weight.detach(), scale * summed.lora_B["sum"].weight.detach())
    rank = max(int(config.r), *(one.rank for one in found.values()))
    return {path: one.padded(rank) for path, one in found.items()}


def _nothing(like: Converted) -> Converted:
    """An adapter of zeros: of one adapter alone, `peft` makes its `linear`, whatever it is asked for."""
    zeros = {path: LowRank(torch.zeros_like(one.a), torch.zeros_like(one.b)) for path, one in like.layers.items()}
    return replace(like, layers=zeros)


def _hollow(shapes: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Linear layers of these shapes (out, in) at these paths, of one number each that takes no memory."""
    root = nn.Module()
    for path, (out, into) in shapes.items():
        parent = root
        *above, name = path.split(".")
        for step in above:
            if not hasattr(parent, step):
                parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        layer = nn.Linear(into, out, bias=False, device="meta")
        layer.weight = nn.Parameter(torch.zeros(1).expand(out, into), requires_grad=False)
        parent.add_module(name, layer)
    return root


def _distance(adapter: Converted, plain: Sequence[Converted], weights: Sequence[float]) -> float:
    left, whole = 0.0, 0.0
    for path, layer in adapter.layers.items():
        parts = [(w * one.scale, one.layers[path]) for w, one in zip(weights, plain, strict=True) if path in one.layers]
        exact = added(parts)
        whole += float(values_of(exact).square().sum())
        left += float(values_of(added([(1.0, exact), (-adapter.scale, layer)])).square().sum())
    return float((left / max(whole, 1e-300)) ** 0.5)


def _where(source: Source) -> str:
    return str(source.tuned)
