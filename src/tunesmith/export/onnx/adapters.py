"""LoRA adapters as ONNX Runtime takes them: what is added at every matrix of a graph, as two factors.

A graph computes `x A B` beside a matrix, where PEFT computes `s x Aᵀ Bᵀ`: factors are transposed, and the scale goes
into B. Where the graph has joined several modules to one matrix, their factors become one pair: ranks beside each
other, and each module's B in its own columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.export.onnx.naming import Piece, Sizes, pieces_of
from tunesmith.export.types import Source, StepError
from tunesmith.models.adapter import read_adapter, unsupported
from tunesmith.models.lora_targets import by_pattern

FORMAT_VERSION = 1
"""Of the adapter file and of the model it belongs to, as ONNX Runtime writes it beside them."""
_FACTOR = re.compile(r"^base_model\.model\.(?P<path>.+)\.lora_(?P<letter>[AB])\.(?:default\.)?weight$")
_STEP = "packing the adapter"
_INSTEAD = "--to onnx, which merges it into the base, or `tunesmith adapters convert` to plain LoRA where that is exact"

Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Factors:
    """What an adapter adds behind a module: a [rank, in] and b [out, rank], with the scale in b."""

    a: Values
    b: Values


def read_factors(source: Source) -> dict[str, Factors]:
    """The factors of a source's adapter by the path of the module.

    Raises `StepError` for what cannot be added beside a matrix while a model runs, all reasons at once.
    """
    if not source.is_adapter:
        raise StepError(_STEP, "this model was tuned in full: there is no adapter to switch to", "--to onnx")
    config, tensors = read_adapter(source.tuned)
    reasons = [*_reasons(config, list(tensors))]
    if reasons:
        raise StepError(_STEP, "; ".join(reasons), _INSTEAD, where=str(source.tuned))
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.match(name)
        if match is None:
            raise StepError(_STEP, f"{name} is no factor of a LoRA adapter", _INSTEAD, where=str(source.tuned))
        found.setdefault(match["path"], {})[match["letter"]] = tensor.float().numpy()
    return {path: _scaled(path, pair, config, source.tuned) for path, pair in found.items()}


def placed(
    factors: Mapping[str, Factors], widths: Mapping[str, tuple[int, int]], sizes: Sizes
) -> dict[str, tuple[Values, Values]]:
    """For every node of a graph that an adapter changes, A [in, rank] and B [rank, out].

    widths: (in, out) of each of the graph's nodes. Raises `StepError` for a module that has no node, and for one whose
    sizes are not those of its node; all at once.
    """
    parts: dict[str, list[tuple[Values, Values]]] = {}
    strange = []
    for path, pair in sorted(factors.items()):
        pieces = pieces_of(path, widths, sizes)
        if not pieces:
            strange.append(f"{path} has no matrix of its own in the graph")
        for piece in pieces:
            rows = _rows(pair.b, piece)
            into, out = widths[piece.node]
            columns = piece.put or slice(0, out)
            if pair.a.shape[1] != into or rows.shape[0] != columns.stop - columns.start or columns.stop > out:
                strange.append(f"{path} has other sizes than {piece.node} in the graph")
                continue
            b = np.zeros((rows.shape[1], out), dtype=np.float32)
            b[:, columns] = rows.T
            parts.setdefault(piece.node, []).append((np.ascontiguousarray(pair.a.T), b))
    if strange:
        raise StepError(_STEP, "; ".join(strange[:5]), _INSTEAD)
    return {
        node: (np.concatenate([a for a, _ in pairs], axis=1), np.concatenate([b for _, b in pairs], axis=0))
        for node, pairs in parts.items()
    }


def write_adapter_file(path: Path, tensors: Mapping[str, Values], dtype: Any) -> None:
    """Write the factors by the names of a graph's inputs, in the type that the graph computes in."""
    import onnxruntime

    form = onnxruntime.AdapterFormat()
    form.set_adapter_version(FORMAT_VERSION)
    form.set_model_version(FORMAT_VERSION)
    # The runtime keeps addresses only: the arrays have to live until the file is written.
    kept = {name: np.ascontiguousarray(one, dtype=dtype) for name, one in tensors.items()}
    form.set_parameters({n: onnxruntime.OrtValue.ortvalue_from_numpy(one) for n, one in kept.items()})
    form.export_adapter(str(path))
    del kept


def _reasons(config: Mapping[str, Any], names: list[str]) -> list[str]:
    reasons = unsupported(dict(config), names)
    if config.get("use_dora") or any("lora_magnitude_vector" in name for name in names):
        reasons.append("DoRA rescales the base's own weights, which a running graph cannot")
    if saved := list(config.get("modules_to_save") or ()):
        reasons.append(f"it holds modules trained in full ({', '.join(saved)})")
    elif any(".lora_" not in name for name in names):
        reasons.append("it holds weights trained in full, of embeddings or head")
    if any(re.search(r"\.lm_head\.lora_", name) for name in names):
        reasons.append("it changes the head, which the graph may share with the embeddings")
    return reasons


def _scaled(path: str, pair: Mapping[str, Any], config: Mapping[str, Any], where: Path) -> Factors:
    if pair.keys() != {"A", "B"}:
        raise StepError(_STEP, f"{path} has one factor only", "train it again: its file is damaged", where=str(where))
    rank = pair["A"].shape[0]
    alpha = by_pattern(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Factors(pair["A"], (pair["B"] * np.float32(scale)).astype(np.float32))


def _rows(b: Values, piece: Piece) -> Values:
    if piece.halves is not None:
        half = b.shape[0] // 2
        return b[piece.halves * half : (piece.halves + 1) * half]
    return b if piece.taken is None else b[piece.taken]
