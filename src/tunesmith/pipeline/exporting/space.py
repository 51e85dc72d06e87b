"""Whether the disk holds an export and what is needed on the way to it, asked before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import ResourceError
from tunesmith.export.source import FolderSource
from tunesmith.models.artifact import Target
from tunesmith.models.base_files import look_at_files
from tunesmith.models.load import loaded_dtype
from tunesmith.pipeline.exporting.reference import reference_bytes
from tunesmith.training.resources import shown_bytes

_BITS = {
    "fp32": 32, "f32": 32, "fp16": 16, "bf16": 16, "f16": 16, "int8": 9, "q8_0": 8.5, "fp8": 9, "q6_k": 8.5,
    "q5_k_m": 8.5, "q4_k_m": 8.5, "int4": 8, "q4_0": 8,
}  # fmt: skip
"""Bits per weight in a file, scales included. Of 4 bits more is expected: embeddings often stay wider, and rows that do
not divide fall back."""
_ROOM = 1.1
_BESIDE = 32 << 20
"""Tokenizer, cards, and what else is small beside weights."""


def needed_bytes(source: FolderSource, targets: Sequence[Target], models: int = 1) -> int:
    """Bytes that exports of a model take while they are made: themselves, and where one goes by way of a merged model,
    that too, once. models: tuned models that are asked, each of which has logits kept."""
    files = look_at_files(source.base_folder, name=source.recipe.base.model)
    weights = files.parameters or files.bytes // 2
    adapter = sum(path.stat().st_size for path in source.tuned.rglob("*") if path.is_file())
    here = 0
    for target in targets:
        if target.kind == "adapter":
            here += adapter
        else:
            here += files.bytes if target.precision == "own" else int(weights * _BITS[target.precision] / 8)
    merged = any(target.kind not in ("adapter", "merged") for target in targets)
    between = weights * loaded_dtype(source.recipe.base).itemsize if merged else 0
    probes = models * reference_bytes(source.config.get_text_config().vocab_size)
    return int(_ROOM * (here + between)) + probes + _BESIDE * len(targets)


def refuse_full_disk(source: FolderSource, targets: Sequence[Target], folder: Path, models: int = 1) -> None:
    """Raise `ResourceError` where `folder`'s disk has less room than `needed_bytes`."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    needed, free = needed_bytes(source, targets, models), shutil.disk_usage(place).free
    if free < needed:
        named = ", ".join(map(str, targets))
        raise ResourceError(
            f"exporting to {named} needs about {shown_bytes(needed)}, and {shown_bytes(free)} are free",
            where=str(place),
            expected="room for the export and for what is written on the way to it",
            fix="free some space, or choose a folder on another disk with --out DIR",
        )
