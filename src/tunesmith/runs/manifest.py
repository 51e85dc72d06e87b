"""The manifest of a run: what it was made of and on what, so that it can be explained and repeated."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.errors import VerificationError
from tunesmith.runs.atomic import write_json

LIBRARIES = (
    *("tunesmith", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn"),
    *("pydantic", "bm25s", "rouge-score"),
)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file; empty where there is none yet. Raises `VerificationError` where it is damaged."""
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise VerificationError(
            f"not valid JSON: {error}", where=str(path), fix="restore the file, or start again with --new"
        ) from error
    if not isinstance(manifest, dict):
        raise VerificationError("not a manifest", where=str(path), expected="a JSON object")
    return manifest


def merge_manifest(path: Path, **sections: Any) -> dict[str, Any]:
    """Merge sections into the file and return the whole: mappings key by key, other values replace the old one."""
    manifest = read_manifest(path)
    for name, section in sections.items():
        old = manifest.get(name)
        manifest[name] = {**old, **section} if isinstance(old, dict) and isinstance(section, dict) else section
    write_json(path, manifest)
    return manifest


def environment() -> dict[str, Any]:
    """Library versions, Python, platform, CPU model, cores, memory in bytes, and the GPU where torch is loaded."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": versions_of(LIBRARIES),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "gpu": _gpu(),
    }


def versions_of(libraries: Iterable[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in libraries:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())
