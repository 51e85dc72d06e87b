"""Exported models that a server answers with: `NAME`, and `NAME:ADAPTER` for each adapter that an export holds.

Exports are named by whoever starts the server, never in a request. Their manifests are read at the start; their files
are compared with their hashes when a model is first asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.inference.serving.engines import ONNX_KINDS
from tunesmith.inference.serving.types import ModelRef
from tunesmith.models.artifact import read_artifact

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def export_refs(exports: Mapping[str, Path]) -> dict[str, ModelRef]:
    """What answers for each name that exports stand for. Raises `RecipeError` with everything that is wrong."""
    if faults := export_faults(exports):
        raise RecipeError("; ".join(faults), where="artifacts")
    found = {}
    for name, folder in exports.items():
        artifact = read_artifact(folder, check=False)
        for variant in (None, *artifact.adapters):
            shown = name if variant is None else f"{name}:{variant}"
            found[shown] = ModelRef(str(folder), None, artifact.chat_template, "onnx", variant=variant)
    return found


def export_faults(exports: Mapping[str, Path]) -> list[str]:
    """What is wrong with names and folders, each in a line that begins with the setting."""
    return [f"artifacts.{name}: {fault}" for name, folder in exports.items() if (fault := _fault(name, folder))]


def parse_exports(given: tuple[str, ...]) -> dict[str, Path]:
    """`NAME=FOLDER` each. Raises `RecipeError` with everything that is wrong."""
    parts = [one.partition("=") for one in given]
    wrong = [one for one, (name, _, folder) in zip(given, parts, strict=True) if not name or not folder]
    names = [name for name, _, _ in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if wrong or twice:
        said = [
            *(f"{one!r} is no name with a folder" for one in wrong),
            *(f"{name!r} is given twice" for name in twice),
        ]
        raise RecipeError("; ".join(said), where="--artifact", expected="NAME=FOLDER, each name once")
    exports = {name: Path(folder).expanduser().absolute() for name, _, folder in parts}
    if faults := export_faults(exports):
        raise RecipeError("; ".join(faults), where="--artifact")
    return exports


def _fault(name: str, folder: Path) -> str | None:
    if not _NAME.fullmatch(name):
        return "a name has letters, digits, '.', '_' and '-', up to 100 of them, and begins with a letter or a digit"
    try:
        kind = read_artifact(folder, check=False).target.kind
    except TunesmithError as error:
        return f"{folder}: {error.what}"
    if kind not in ONNX_KINDS:
        return f"{folder} is an export of kind {kind}; this server answers with {', '.join(ONNX_KINDS)}"
    return None
