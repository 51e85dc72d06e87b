"""The door to GGUF adapters, which needs no gguf library before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.export.gguf.write import require_library


def write_adapter_gguf(adapter: Path, base: Path, out: Path, *, name: str | None = None) -> Mapping[str, Any]:
    """Write a PEFT adapter's folder as the GGUF file `out`; returns facts of it (alpha, ranks, layers).

    `base`: folder of the base, of which the configuration alone is read. Raises `StepError` for an adapter that no GGUF
    file can hold, with all reasons; `EngineError` where it cannot be read, or the gguf library is missing.
    """
    require_library()
    from tunesmith.export.gguf.lora import write_lora

    return write_lora(adapter, base, out, name or adapter.name)
