"""`system_fingerprint`: changes when the weights that answer, or the version that asks them, do."""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path

from tunesmith.inference.serving.types import ModelRef
from tunesmith.models.artifact import MANIFEST

_SAMPLE = 1 << 20
"""Bytes that are read at the beginning and the end of each file: training changes every tensor, and a hash of whole
files would keep the first request of a large model waiting."""


def fingerprint(ref: ModelRef) -> str:
    """`fp_` and ten hexadecimal digits. Of a base that is no folder here (a hub id, an endpoint) its name stands in."""
    folders = [path for path in (_base_folder(ref.base), ref.adapter) if path is not None]
    files = tuple(
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        if folder.is_dir()
        for path in sorted((*folder.glob("*.safetensors"), *folder.glob(MANIFEST)))
    )
    return _hashed((_version(), ref.base, ref.chat_template, ref.engine, ref.url or "", ref.variant or ""), files)


@cache
def _version() -> str:
    return version("tunesmith")


@lru_cache(maxsize=1024)
def _hashed(names: tuple[str, ...], files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256("\0".join(names).encode())
    for name, size, _ in files:
        with Path(name).open("rb") as stream:
            digest.update(size.to_bytes(8, "little") + stream.read(_SAMPLE))
            if size > 2 * _SAMPLE:
                stream.seek(size - _SAMPLE)
                digest.update(stream.read(_SAMPLE))
    return f"fp_{digest.hexdigest()[:10]}"


def _base_folder(base: str) -> Path | None:
    if base.startswith("embedded:"):
        import tunesmith.models

        return Path(tunesmith.models.__path__[0]) / "embedded" / base.removeprefix("embedded:")
    folder = Path(base)
    return folder if folder.is_dir() else None
