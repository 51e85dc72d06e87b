"""A LoRA adapter as a GGUF file, to be loaded beside its base's: `llama-cli --lora`, llama-server, llama-cpp-python.

llama.cpp adds alpha / rank x B A to a weight, with one alpha for the whole file. An adapter that scales otherwise
(rsLoRA, single ranks or alphas) has the difference multiplied into its B, so that nothing is lost. B's rows are moved
as the base's weight's are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type

from tunesmith.errors import VerificationError
from tunesmith.export.gguf.families import INSTEAD, Array, Family, change_rows, family_of, query_factor
from tunesmith.export.gguf.file import Entry, write_file
from tunesmith.export.gguf.settings import Value
from tunesmith.export.gguf.tensors import tensor_names
from tunesmith.export.gguf.write import config_of
from tunesmith.export.types import StepError
from tunesmith.models.adapter import read_adapter, unsupported
from tunesmith.models.lora_init import FROM_WEIGHTS
from tunesmith.models.lora_targets import by_pattern

_PREFIX = "base_model.model."
_ROUNDING = 1e-4
"""Relative difference in the Frobenius norm, beyond which it is not that of 32-bit numbers."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """One adapted layer: its path in the model, A [rank, in], B [out, rank] and what B A is scaled by."""

    path: str
    a: Array
    b: Array
    scale: float


def write_lora(adapter: Path, base: Path, out: Path, name: str) -> Mapping[str, Any]:
    """See `export.gguf.adapter.write_adapter_gguf`."""
    config = config_of(base)
    family = family_of(config)
    kept, tensors = read_adapter(adapter)
    _refuse(kept, list(tensors), config)
    layers = list(_layers(kept, tensors))
    alpha = float(kept["lora_alpha"]) or 1.0  # llama.cpp takes 0 for "no scale"
    names = tensor_names(family, config)
    entries, without = [], []
    for layer in layers:
        target = names.get_name(layer.path)
        if target is None:
            without.append(layer.path)
            continue
        a, b = layer.a, _moved(family, config, layer, alpha)
        entries += [
            Entry(f"{target}.weight.{part}", values.shape, Type.F32, partial(lambda v: v, values))
            for part, values in (("lora_a", a), ("lora_b", b))
        ]
    if without:
        raise StepError("adapter", f"llama.cpp's {family.arch} has no place for {', '.join(without[:5])}", INSTEAD)
    said: dict[str, Value] = {
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    write_file(out, family.arch, said, entries)
    _refuse_differing(out, layers, family, config)
    return {"architecture": family.arch, "alpha": alpha, "layers": len(layers), "ranks": _ranks(layers)}


def _ranks(layers: list[_Layer]) -> list[int]:
    return sorted({layer.a.shape[0] for layer in layers})


def _refuse(kept: Mapping[str, Any], names: list[str], config: Any) -> None:
    """Raise `StepError` with everything that a GGUF adapter cannot hold."""
    reasons = unsupported(dict(kept), names)
    if (init := kept.get("init_lora_weights", True)) in FROM_WEIGHTS:
        reasons.append(f"init_lora_weights: {init}, which belongs to a base that it changed")
    if kept.get("use_dora") or any("lora_magnitude_vector" in name for name in names):
        reasons.append("DoRA, which rescales the base's own weights")
    others = sorted({n for n in names if ".lora_A." not in n and ".lora_B." not in n and "magnitude" not in n})
    full = [n for n in others if ".base_layer." not in n and ".lora_embedding_" not in n]
    if full:
        reasons.append(f"weights in full ({', '.join(n.removeprefix(_PREFIX) for n in full[:3])})")
    if config.tie_word_embeddings and any(".lm_head." in n and ".lora_A." in n for n in names):
        reasons.append("a changed head, which here is the embeddings too")
    if reasons:
        instead = "merge the adapter and export that: --to gguf"
        raise StepError("adapter", f"a GGUF adapter cannot hold {'; '.join(reasons)}", instead)


def _layers(kept: Mapping[str, Any], tensors: Mapping[str, Any]) -> Iterator[_Layer]:
    for key in sorted(tensors):
        if ".lora_A." not in key:
            continue
        path = key.removeprefix(_PREFIX).split(".lora_A.")[0]
        a = tensors[key].float().numpy()
        b = tensors[key.replace(".lora_A.", ".lora_B.")].float().numpy()
        alpha = by_pattern(kept.get("alpha_pattern") or {}, path, float(kept["lora_alpha"]))
        rank = a.shape[0]
        yield _Layer(path, a, b, alpha / (math.sqrt(rank) if kept.get("use_rslora") else rank))


def _refuse_differing(out: Path, layers: list[_Layer], family: Family, config: Any) -> None:
    """Raise `VerificationError` unless the file, read by what knows nothing of its writing, adds what the adapter does.

    The file is removed then.
    """
    from tunesmith.inference.gguf_reading import adapter_changes

    found, missing = 0.0, {f"{layer.path}.weight": layer for layer in layers}
    for name, change in adapter_changes(out, config):
        layer = missing.pop(name)
        factor = query_factor(family, config) if family.query_scale == name.split(".")[-2] else 1.0
        own = (layer.b @ layer.a) * np.float32(layer.scale * factor)
        own = own.T if family.transposed else own
        size = float(np.linalg.norm(own))
        found = max(found, float(np.linalg.norm(change - own)) / size if size else float(np.abs(change).max()))
    if missing or not found < _ROUNDING:
        out.unlink()
        lacking = f", and {len(missing)} layers are missing" if missing else ""
        raise VerificationError(
            f"the file adds something else than the adapter: a relative difference of {found:.1g}{lacking}",
            where=str(out),
            expected=f"less than {_ROUNDING:g}",
            fix="merge the adapter and export that (--to gguf), and report this",
        )


def _moved(family: Family, config: Any, layer: _Layer, alpha: float) -> Array:
    """B with its rows as llama.cpp wants them, so that alpha / rank x B A is the adapter's own sum."""
    b = layer.b * np.float32(layer.scale * layer.a.shape[0] / alpha)
    return np.ascontiguousarray(change_rows(family, config, layer.path.rpartition(".")[2], b))
