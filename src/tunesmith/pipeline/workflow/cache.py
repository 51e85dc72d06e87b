"""The steps of a workflow that were done before: each in a folder named after the hash of all that decides its result.

```
steps/onnx-4be1f0c2a9d37e58/
  product/      the run, or the export, that the step made
  step.json     its key, what it found, and the SHA-256 of the product's files; written last
```
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.models.artifact import hash_files
from tunesmith.runs import stage_key, write_json
from tunesmith.runs.manifest import versions_of

_RECORD = "step.json"
_PRODUCT = "product"
LIBRARIES = (
    *("tunesmith", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy"),
    *("accelerate", "bitsandbytes", "llguidance", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai"),
    *("openvino", "gguf", "llama-cpp-python", "torchao"),
)
"""What may change a step's result; another version of one does the step again."""


@dataclass(frozen=True, slots=True)
class Done:
    """A finished step: what it found, the folder with its product, whether an earlier one was taken, and the seconds
    that it took when it was carried out."""

    key: str
    result: Mapping[str, Any]
    product: Path
    cached: bool
    seconds: float


def versions() -> dict[str, str]:
    """Versions of the libraries that may change a step's result, of those that are installed."""
    return versions_of(LIBRARIES)


def step_key(kind: str, **inputs: Any) -> str:
    """SHA-256 of a step's kind, its inputs, and the versions of libraries."""
    return stage_key(kind=kind, inputs=inputs, versions=versions())


def once(
    cache: Path,
    kind: str,
    key: str,
    carry_out: Callable[[Path], Mapping[str, Any]],
    *,
    kept: Callable[[Path], list[Path]] = lambda product: [product],
    tell: Callable[[str], None] = lambda line: None,
) -> Done:
    """The step's result: of an earlier one with the same key and an undamaged product, or of `carry_out(product)`.

    kept: files and folders of the product that must stay as they are; others may grow, such as a run's event log.
    `carry_out` gets a path that may hold what an interrupted step left.
    """
    folder = cache / f"{kind}-{key[:16]}"
    product = folder / _PRODUCT
    record = _read(folder / _RECORD, key)
    if record is not None:
        if record["files"] == _hashes(product, kept):
            return Done(key, record["result"], product, cached=True, seconds=record["seconds"])
        tell(f"{kind}: its files are not what they were, so it is done again")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    result = dict(carry_out(product))
    record = {"key": key, "kind": kind, "result": result, "seconds": time.monotonic() - began}
    write_json(folder / _RECORD, {**record, "files": _hashes(product, kept)})
    return Done(key, result, product, cached=False, seconds=record["seconds"])


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """The record of a finished step; None where there is none, or one that cannot be read."""
    try:
        record = json.loads(path.read_bytes())
        whole = all(isinstance(record[name], dict) for name in ("files", "result")) and float(record["seconds"]) >= 0
        return record if record["key"] == key and whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hashes(product: Path, kept: Callable[[Path], list[Path]]) -> dict[str, str]:
    """SHA-256 of every file that must stay, by its path below the product."""
    found: dict[str, str] = {}
    for path in kept(product) if product.exists() else ():
        if path.is_dir():
            inner, _ = hash_files(path)
            found |= {(path.relative_to(product) / name).as_posix(): sha for name, sha in inner.items()}
        elif path.is_file():
            with path.open("rb") as stream:
                found[path.relative_to(product).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
