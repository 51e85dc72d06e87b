"""How a folder of ONNX Runtime GenAI is opened here: on the device it was made for, or a CPU where that is absent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError

GENAI = "genai_config.json"
ADAPTERS = "adapters.json"
"""In an artifact of several adapters: the file of each, by its name."""


def runtime() -> Any:
    """The package. Raises `EngineError` where it is not installed."""
    try:
        import onnxruntime_genai as og
    except ImportError as error:
        raise EngineError("ONNX Runtime GenAI is not installed", fix="pip install 'tunesmith[onnx]'") from error
    return og


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's own configuration. Raises `EngineError` where there is none."""
    try:
        settings: dict[str, Any] = json.loads((folder / GENAI).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{GENAI} cannot be read: {error}", where=str(folder), fix="export again") from error
    return settings


def adapter_files(folder: Path) -> dict[str, Path]:
    """The files of the adapters in a folder, by their names; empty where it holds one model.

    Raises `EngineError` for a list that is none, and for a file that is not in this folder.
    """
    path = folder / ADAPTERS
    if not path.is_file():
        return {}
    try:
        said = dict(json.loads(path.read_text(encoding="utf-8")))
        found = {str(name): folder / file for name, file in said.items()}
    except (ValueError, TypeError) as error:
        raise EngineError(f"{ADAPTERS} cannot be read: {error}", where=str(folder), fix="export again") from error
    outside = [name for name, file in found.items() if not file.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise EngineError(
            f"{ADAPTERS} names files outside its folder, for {', '.join(outside)}",
            where=str(folder),
            fix="export again",
        )
    return found


def adapter_file(folder: Path, name: str) -> Path:
    """The file of an adapter. Raises `EngineError` for a name that the folder has not."""
    files = adapter_files(folder)
    if name not in files:
        raise EngineError(
            f"this export holds no adapter {name!r}",
            where=str(folder),
            expected=", ".join(files) or "no name of an adapter: it is one model",
        )
    return files[name]


def open_config(folder: Path, threads: int | None = None) -> tuple[Any, str | None]:
    """The folder's configuration for `og.Model`, and the provider that it was made for but that is not here.

    threads: at most; by default as many as OMP_NUM_THREADS says, else all. A graph that was made for a device that is
    absent is run on the CPU.
    """
    og, settings = runtime(), read_config(folder)
    config = og.Config(str(folder))
    said = settings["model"]["decoder"]["session_options"].get("provider_options") or []
    here = {"cuda": og.is_cuda_available, "dml": og.is_dml_available}
    absent = next((name for one in said for name in one if name in here and not here[name]()), None)
    if absent is not None:
        config.clear_providers()
    wanted = threads if threads is not None else threads_wanted()
    if wanted is not None:
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": wanted}}}}))
    return config, absent


def threads_wanted() -> int | None:
    """As OMP_NUM_THREADS says, which torch follows too; None where it says nothing: all of them."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(said) if said.isdecimal() and int(said) > 0 else None
