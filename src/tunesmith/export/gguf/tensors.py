"""Which tensors a GGUF file gets, and each of them, when its turn comes, out of the model's safetensors files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import SafetensorError, safe_open

from tunesmith.errors import VerificationError
from tunesmith.export.gguf.families import INSTEAD, Array, Family, change_tensor
from tunesmith.export.types import StepError

_COMPUTED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""What old files keep, although it is computed anew."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written: its name in the file, its shape there, and where it comes from.

    module: path of the module that it belongs to, as `transformers` names it.
    dtype: that of the source, as safetensors names it.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    file: Path
    module: str
    dtype: str


def plan_tensors(family: Family, config: Any, folder: Path) -> list[Planned]:
    """The tensors in the order of the file. Raises `StepError` for one that llama.cpp has no place for, all named;
    `VerificationError` where one is missing or a file cannot be read."""
    names = tensor_names(family, config)
    planned, without = [], []
    for source, (file, shape, dtype) in sorted(_stored(folder).items(), key=lambda item: _natural(item[0])):
        if source.endswith(_COMPUTED) or (source == "lm_head.weight" and config.tie_word_embeddings):
            continue
        module, _, kind = source.rpartition(".")
        last = module.rpartition(".")[2]
        name = names.get_name(module) if kind == "weight" or last in family.biased else None
        if name is None:
            without.append(source)
            continue
        turned = family.transposed and len(shape) == 2 and last.startswith("c_")
        planned.append(Planned(f"{name}.{kind}", shape[::-1] if turned else shape, source, file, module, dtype))
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        said = ", ".join(without[:5]) + more
        raise StepError("tensors", f"llama.cpp's {family.arch} has no place for {said}", INSTEAD)
    _refuse_gaps(planned, config, folder)
    return planned


def read_tensor(planned: Planned, family: Family, config: Any) -> Array:
    """One tensor as llama.cpp wants it. Raises `VerificationError` where it holds something that is no number."""
    import torch

    with _opened(planned.file) as stored:
        values = stored.get_tensor(planned.source).to(torch.float32).numpy()
    if not np.isfinite(values).all():
        raise VerificationError(f"{planned.source} holds values that are no numbers", where=str(planned.file))
    return np.ascontiguousarray(change_tensor(family, config, planned.module.rpartition(".")[2], values))


def tensor_names(family: Family, config: Any) -> Any:
    """The gguf library's map from modules, as `transformers` names them, to tensors of a family's files."""
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    return gguf.get_tensor_name_map(architecture, config.num_hidden_layers)


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise VerificationError(f"the weights cannot be read: {error}", where=str(file)) from error


def _stored(folder: Path) -> dict[str, tuple[Path, tuple[int, ...], str]]:
    """Every tensor of a model's folder: its file, shape and dtype."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with _opened(file) as stored:
            for name in stored.keys():  # noqa: SIM118 (no mapping)
                part = stored.get_slice(name)
                found[name] = (file, tuple(part.get_shape()), str(part.get_dtype()))
    if not found:
        raise VerificationError("no weights are here", where=str(folder), expected="safetensors files")
    return found


def _natural(name: str) -> tuple[Any, ...]:
    """Blocks in the order of their numbers; what belongs to none before them."""
    numbers = re.findall(r"\.(\d+)\.", f".{name}")
    return (int(numbers[0]) if numbers else -1, name)


def _refuse_gaps(planned: list[Planned], config: Any, folder: Path) -> None:
    """Raise where a block lacks what others have, or the model an end."""
    names = {one.name for one in planned}
    blocks: Mapping[int, set[str]] = {i: set() for i in range(config.num_hidden_layers)}
    for name in names:
        if match := re.fullmatch(r"blk\.(\d+)\.(.+)", name):
            blocks[int(match[1])].add(match[2])
    everywhere = set().union(*blocks.values())
    ends = {"token_embd.weight", "output_norm.weight"} | (set() if config.tie_word_embeddings else {"output.weight"})
    missing = sorted(ends - names) + [f"blk.{i}.{name}" for i, has in blocks.items() for name in everywhere - has]
    if missing or not everywhere:
        raise VerificationError(
            f"the model's files lack tensors: {', '.join(missing[:5]) or 'all of its blocks'}",
            where=str(folder),
            fix="make the model's folder again",
        )
