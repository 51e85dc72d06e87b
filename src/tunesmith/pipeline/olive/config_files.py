"""Several configuration files as one: a base, and fragments that change what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.pipeline.olive.project import read_mapping

_MODEL = ("input_model", "model")


def read_files(paths: Sequence[Path]) -> dict[str, Any]:
    """Later files over earlier ones, section by section; a list takes the place of the one before it.

    Raises `RecipeError` for a file that cannot be read.
    """
    result: dict[str, Any] = {}
    for path in paths:
        config = read_mapping(path)
        other = next((name for name in _MODEL if name in result), None)
        for name in _MODEL:  # two words for one section
            if name in config and other is not None and name != other:
                config = {other if key == name else key: value for key, value in config.items()}
        result = _over(result, config)
    return result


def _over(before: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another. Options may stand in it or in a `config` inside: in one place where the two differ."""
    if isinstance(before.get("config"), dict) != isinstance(later.get("config"), dict):
        before, later = _flat(before), _flat(later)
    result = dict(before)
    for key, value in later.items():
        old = result.get(key)
        result[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _flat(one: Mapping[str, Any]) -> dict[str, Any]:
    inner = one.get("config")
    return {**{k: v for k, v in one.items() if k != "config"}, **inner} if isinstance(inner, dict) else dict(one)
