"""Which modules of a base are adapted, with which rank, and the names that say so in an adapter's file.

Names match as PEFT matches them: a target by the end of a module's path at a dot (or a whole string as a regular
expression); a pattern of ranks as a regular expression at the end of the path; a module saved in full by the bare end
of its path, where `norm` also means `input_layernorm`. For the last we keep to dots, and write paths where it matters.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import RecipeError
from tunesmith.models.trunk import decoder_layers

ALL_LINEAR = "all-linear"

_Value = TypeVar("_Value")


def adaptable(module: nn.Module) -> bool:
    """Whether a module can get a LoRA update: a linear layer, GPT-2's transposed one, or one on quantised weights."""
    return isinstance(module, nn.Linear | Conv1D) or hasattr(module, "dequantized")


def layer_shape(module: Any) -> tuple[int, int]:
    """(out, in) of an adaptable module."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    return int(module.out_features), int(module.in_features)


def means(wanted: str, path: str) -> bool:
    """Whether the name `wanted` stands for the module at `path`: the path itself, or its end from a dot on."""
    return path == wanted or path.endswith("." + wanted)


def last_layer_paths(model: Any, count: int) -> tuple[list[str], list[str]]:
    """Paths of the layers below the last `count`, and of those. Raises `RecipeError` where there are not so many."""
    layers = decoder_layers(getattr(model, model.base_model_prefix))
    path = next(path for path, module in model.named_modules() if module is layers)
    if count > len(layers):
        raise RecipeError(
            f"the base has {len(layers)} layers, not {count}",
            where="method.last_layers",
            expected=f"at most {len(layers)}",
        )
    paths = [f"{path}.{i}" for i in range(len(layers))]
    return paths[: len(layers) - count], paths[len(layers) - count :]


def saved_paths(model: Any, names: Iterable[str]) -> list[str]:
    """Paths of the modules that `names` stand for, in the model's order, without those inside another of them.

    Raises `RecipeError` for a name that stands for none, or for a module without weights of its own.
    """
    paths = [path for path, module in model.named_modules() if path and _has_weights(module)]
    found: set[str] = set()
    for name in names:
        hits = {path for path in paths if means(name, path)}
        if not hits:
            _unknown(name, "method.modules_to_save", "saved", paths)
        found |= hits
    return [path for path in paths if path in found and not inside(path, found - {path})]


def select_targets(
    model: Any, wanted: str | Sequence[str], saved: Collection[str] = (), last_layers: int | None = None
) -> dict[str, Any]:
    """Modules to adapt by path, in the model's order: all-linear, a regular expression for whole paths, or names.

    Left out are modules inside those saved in full, and everything below the last layers if so many are asked for.
    Raises `RecipeError` for names that stand for nothing that can be adapted.
    """
    head = model.get_output_embeddings()
    linear = {path: module for path, module in model.named_modules() if adaptable(module) and not inside(path, saved)}
    below, above = ([], []) if last_layers is None else last_layer_paths(model, last_layers)
    if wanted == ALL_LINEAR:
        found = {path for path, module in linear.items() if module is not head}
    elif isinstance(wanted, str):
        found = {path for path in linear if _compiled(wanted, "method.target_modules").fullmatch(path)}
    else:
        found = set()
        for name in wanted:
            hits = {path for path in linear if means(name, path)}
            if not hits:
                _unknown_target(model, name, linear, saved)
            found |= hits
    if last_layers is not None:
        named = wanted != ALL_LINEAR  # what is not in a layer may lie below them all: only if somebody says so
        found = {path for path in found if inside(path, above) or (named and not inside(path, below))}
    if not found:
        where = "method.target_modules" if last_layers is None else "method.last_layers"
        raise RecipeError("no module of the base can be adapted", where=where, expected=_listed(linear))
    return {path: module for path, module in linear.items() if path in found}


def matching_targets(
    model: Any,
    wanted: str | Sequence[str],
    *,
    layers_to_transform: int | Sequence[int] | None,
    layers_pattern: str | Sequence[str] | None,
    exclude_modules: str | Sequence[str] | None,
) -> tuple[str, ...]:
    """Paths of what PEFT's `target_modules` (as in `select_targets`) means together with options that narrow it.

    A layer is the first number in a path, behind one of `layers_pattern` where that is given.
    """
    layers = {layers_to_transform} if isinstance(layers_to_transform, int) else set(layers_to_transform or ())
    before = [layers_pattern] if isinstance(layers_pattern, str) else list(layers_pattern or ())
    numbered = [rf"(?:.*?\.)?{name}\.(\d+)\." for name in before] or [r".*?\.[^.]*\.(\d+)\."]

    def kept(path: str) -> bool:
        if isinstance(exclude_modules, str):
            if re.fullmatch(exclude_modules, path):
                return False
        elif any(means(name, path) for name in exclude_modules or ()):
            return False
        match = next(filter(None, (re.match(pattern, path) for pattern in numbered)), None)
        return not layers or (match is not None and int(match[1]) in layers)

    return tuple(path for path in select_targets(model, wanted) if kept(path))


def inside(path: str, others: Iterable[str]) -> bool:
    """Whether a module is one of the others, or within one."""
    return any(path == other or path.startswith(other + ".") for other in others)


def by_pattern(patterns: Mapping[str, _Value], path: str, default: _Value) -> _Value:
    """The value of the first pattern that matches the end of a path, from a dot on."""
    return next((value for key, value in patterns.items() if _matches(key, path, "method")), default)


def check_patterns(patterns: Mapping[str, Any], paths: Collection[str], where: str) -> None:
    """Raise `RecipeError` for a pattern that is no regular expression, or that no adapted module answers to."""
    for key in patterns:
        if not any(_matches(key, path, where) for path in paths):
            _unknown(key, where, "adapted", paths)


def target_names(model: Any, given: str | Sequence[str], targets: Collection[str]) -> tuple[str, ...]:
    """Names for an adapter's file that stand for exactly these modules, and no other of the model, whatever it is.

    Those given, if they do; else the last parts of the paths; else the paths.
    """
    paths = [path for path, _ in model.named_modules()]
    for names in (() if isinstance(given, str) else given, sorted({path.rpartition(".")[2] for path in targets})):
        if {path for path in paths if any(means(name, path) for name in names)} == set(targets):
            return tuple(names)
    return tuple(targets)


def saved_names(model: Any, names: Iterable[str], paths: Collection[str]) -> tuple[str, ...]:
    """Names of saved modules for an adapter's file: those given if PEFT reads them as these paths, else the paths."""
    given = tuple(names)
    meant = {path for path, _ in model.named_modules(remove_duplicate=False) if path.endswith(given)}
    return given if not given or meant == set(paths) else tuple(paths)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _matches(key: str, path: str, where: str) -> bool:
    return _compiled(rf"(.*\.)?({key})$", where, shown=key).match(path) is not None


def _compiled(pattern: str, where: str, shown: str | None = None) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"{shown or pattern!r} is no regular expression: {error}", where=where, fix=r"write dots as \."
        ) from error


def _unknown_target(model: Any, name: str, linear: Mapping[str, Any], saved: Collection[str]) -> NoReturn:
    other = next((p for p, m in model.named_modules() if p and means(name, p) and _has_weights(m)), None)
    if other is None:
        _unknown(name, "method.target_modules", "adapted", linear)
    if inside(other, saved):
        raise RecipeError(
            f"{name!r} cannot be adapted: it is trained in full",
            where="method.target_modules",
            fix="name it there or in method.modules_to_save, not in both",
        )
    raise RecipeError(
        f"the base's module {other!r} is no linear layer: there is no module {name!r} that can be adapted",
        where="method.target_modules",
        expected=_listed(linear),
        fix=f"train it in full: method.modules_to_save: [{name}]",
    )


def _unknown(name: str, where: str, use: str, paths: Collection[str]) -> NoReturn:
    ends = sorted({path.rpartition(".")[2] for path in paths})
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, n=3) or difflib.get_close_matches(name, paths, n=3)
    raise RecipeError(
        f"the base has no module {name!r} that can be {use}",
        where=where,
        expected="one of " + ", ".join(near) if near else _listed(paths),
    )


def _listed(paths: Collection[str]) -> str:
    return "one of " + ", ".join(sorted({path.rpartition(".")[2] for path in paths})[:12])
