"""The stage cache: a stage that is done is not done again while its inputs are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import VerificationError
from tunesmith.runs.atomic import write_json

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


def stage_key(**inputs: Any) -> str:
    """SHA-256 of the inputs as canonical JSON: equal inputs give equal keys in every process.

    Inputs are JSON values, paths, dataclasses, pydantic models and collections of them; others raise `TypeError`, NaN
    raises `ValueError`.
    """
    canonical = json.dumps(_plain(inputs), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_stage(folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """The result of a stage done with these inputs, or None. Raises `VerificationError` where the record is damaged."""
    path = _path(folder, name)
    try:
        record = json.loads(path.read_bytes())
        stored, result = record["key"], record["result"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise VerificationError(
            "this record of a finished stage is damaged",
            where=str(path),
            fix="delete the file; the stage is done again",
        ) from error
    return dict(result) if stored == key else None


def write_stage(folder: Path, name: str, key: str, result: Mapping[str, Any]) -> None:
    """Record a stage's result under its key, in place of an older one."""
    write_json(_path(folder, name), {"stage": name, "key": key, "result": dict(result)})


def _path(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a stage")
    return folder / f"{name}.json"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(inner) for inner in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"a stage's key cannot be made of {type(value).__name__}")
