"""A cut of a base: some of its layers, its embeddings and its head, read from its files without the rest.

A cut has the first, the middle and the last layer, and the first of every further kind: with another attention (sliding
and full) or other weights (dense and experts). What computes alike in every layer is thereby checked in the model that
will be trained, in the time and memory of a few layers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tunesmith.errors import EngineError, ResourceError
from tunesmith.models.load import base_folder
from tunesmith.recipe.schema import Base
from tunesmith.training.gate.models import open_model
from tunesmith.training.gate.weight_files import WeightFiles, damage, first_line, weight_files
from tunesmith.training.resources import shown_bytes

WINDOW = 12
"""Tokens of a cut's sliding window, so that short rows cross it."""
_SMALLEST_VOCABULARY = 2048
_BYTES = 14
"""Bytes of memory per weight of the cut: 8 in float64 while a file is read; 11.8 were measured at 100 M weights."""
_NUMBERED = re.compile(r"((?:[^.]+\.)*?)(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: shape as stored, and how many of its rows are read (None: all)."""

    path: Path
    key: str
    shape: tuple[int, ...]
    rows: int | None = None

    @property
    def values(self) -> int:
        shape = self.shape if self.rows is None else (self.rows, *self.shape[1:])
        return int(torch.Size(shape).numel())

    def read(self) -> Tensor:
        """Raises `EngineError` where the file is damaged or holds NaN or infinity."""
        with damage(self.path), safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.key) if self.rows is None else file.get_slice(self.key)[: self.rows]
        if not torch.isfinite(tensor).all():
            raise EngineError(
                f"{self.key} holds NaN or infinity", where=str(self.path), fix="take the base model's files again"
            )
        return tensor


@dataclass(frozen=True, slots=True)
class Cut:
    """A base with some of its layers; opens as a model (`models.Source`).

    layers: which of the base's are in it. stored: where its tensors lie, by their names in the cut. left_out: what is
    not in it or otherwise than in the base, as phrases.
    """

    name: str
    config: Any
    layers: tuple[int, ...]
    of_layers: int
    stored: dict[str, Stored]
    left_out: tuple[str, ...]
    trust_remote_code: bool = False

    @property
    def vocabulary(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    @property
    def parameters(self) -> int:
        """Weights in the cut."""
        return sum(s.values for s in self.stored.values())

    def open(self, dtype: torch.dtype, rounded: torch.dtype, device: torch.device) -> Any:
        """The cut as a `transformers` model. Raises `EngineError` where files and configuration do not fit."""
        weights = {}
        for name, stored in self.stored.items():
            tensor = stored.read()
            weights[name] = tensor.to(rounded).to(dtype) if tensor.is_floating_point() else tensor
        try:
            return open_model(self.config, weights, dtype, device, trust_remote_code=self.trust_remote_code)
        except (ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
            raise EngineError(
                f"a cut of this base cannot be built: {first_line(error)}",
                where=self.name,
                expected="a causal language model whose weights are those its config.json describes",
                fix="take the base model's files again; if they are right, its architecture cannot be cut yet",
            ) from error


def plan_cut(spec: Base, memory: int) -> Cut:
    """Which part of a base to take, to fit into `memory` bytes.

    Where it is too much, the middle layer is left out, then rows of embeddings and head.

    Raises
    ------
    RecipeError: there is no such base.
    EngineError: its files are missing, damaged, or not of one list of layers.
    ResourceError: not even the smallest cut fits.
    """
    folder = base_folder(spec.model)
    config = _config(spec, folder)
    text = config.get_text_config()
    count, vocabulary = int(text.num_hidden_layers), int(text.vocab_size)
    files = weight_files(spec, folder)
    prefix = _layers_prefix(spec.model, files.holding, count)
    kinds = _kinds(text, files.holding, prefix, count)
    wanted, rows = _chosen(kinds), None
    stored = _stored(files, prefix, wanted)
    layers = wanted
    if _bytes(_renamed(stored, prefix, layers, None, vocabulary)) > memory:
        layers = _chosen(kinds, middle=False)
    while (need := _bytes(_renamed(stored, prefix, layers, rows, vocabulary))) > memory:
        rows = (rows or vocabulary) // 2
        if rows < _SMALLEST_VOCABULARY:
            raise ResourceError(
                f"a cut of {len(layers)} layers needs about {shown_bytes(need)} of memory",
                where=spec.model,
                expected=f"at most {shown_bytes(memory)}, a share of what is free",
                fix="close other programs, or use a machine with more memory",
            )
    return Cut(
        name=spec.model,
        config=_cut_config(config, layers, rows),
        layers=layers,
        of_layers=count,
        stored=_renamed(stored, prefix, layers, rows, vocabulary),
        left_out=_left_out(len(kinds), layers, wanted, rows, vocabulary, text),
        trust_remote_code=spec.trust_remote_code,
    )


def _config(spec: Base, folder: Path | None) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    where = spec.model if folder is None else str(folder)
    try:
        config = AutoConfig.from_pretrained(
            spec.model if folder is None else str(folder),
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, StrictDataclassError) as error:
        raise EngineError(
            f"the configuration could not be read: {first_line(error)}",
            where=where,
            expected="config.json of a causal language model",
            fix="check the name, the network, or give a local folder",
        ) from error
    text = config.get_text_config()
    missing = [name for name in ("num_hidden_layers", "vocab_size", "hidden_size") if not _is_size(text, name)]
    if missing or config.is_encoder_decoder:
        raise EngineError(
            f"the configuration has no {missing[0]}" if missing else "this is an encoder-decoder model",
            where=where,
            expected="config.json of a causal language model",
            fix="take the base model's files again, or choose another base",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise EngineError(
            "the weights of this base are quantised already",
            where=where,
            expected="a base with plain weights",
            fix="use the original base; method.quantize quantises it when it is loaded",
        )
    return config


def _is_size(text: Any, name: str) -> bool:
    value = getattr(text, name, None)
    return isinstance(value, int) and value > 0


def _stored(files: WeightFiles, prefix: str, layers: Sequence[int]) -> dict[str, Stored]:
    """All tensors of a base but those of other layers; only the files that hold them are opened (or downloaded)."""
    begins = tuple(f"{prefix}{layer}." for layer in layers)
    keys: dict[str, list[str]] = {}
    for key, name in files.holding.items():
        if not key.startswith(prefix) or key.startswith(begins):
            keys.setdefault(name, []).append(key)
    stored = {}
    for name, wanted in keys.items():
        path = files.path(name)
        with damage(path), safe_open(path, framework="pt") as file:
            for key in wanted:
                stored[key] = Stored(path, key, tuple(file.get_slice(key).get_shape()))
    return stored


def _layers_prefix(name: str, keys: Iterable[str], count: int) -> str:
    """What stands before a decoder layer's number in the names of tensors."""
    numbers: dict[str, set[int]] = {}
    for key in keys:
        found = _NUMBERED.fullmatch(key)
        if found and "vision" not in found[1] and "audio" not in found[1]:
            numbers.setdefault(found[1], set()).add(int(found[2]))
    whole = [prefix for prefix, seen in numbers.items() if seen == set(range(count))]
    if len(whole) != 1:
        told = "; ".join(f"{prefix}* has {len(seen)}" for prefix, seen in sorted(numbers.items()))
        raise EngineError(
            f"the weights do not have {count} layers as the configuration says: {told or 'none'}",
            where=name,
            fix="take the base model's files again, config.json included",
        )
    return whole[0]


def _kinds(text: Any, keys: Iterable[str], prefix: str, count: int) -> list[tuple[str, frozenset[str]]]:
    """Of each layer its kind of attention, and what tensors it has."""
    types = getattr(text, "layer_types", None) or ["full_attention"] * count
    parts: list[set[str]] = [set() for _ in range(count)]
    for key in keys:
        if key.startswith(prefix):
            number, _, name = key[len(prefix) :].partition(".")
            parts[int(number)].add(name)
    return [(str(types[i]), frozenset(parts[i])) for i in range(count)]


def _chosen(kinds: Sequence[tuple[str, frozenset[str]]], middle: bool = True) -> tuple[int, ...]:
    chosen = {0, len(kinds) - 1} | ({len(kinds) // 2} if middle else set())
    seen = {kinds[i] for i in chosen}
    for number, kind in enumerate(kinds):
        if kind not in seen:
            seen.add(kind)
            chosen.add(number)
    return tuple(sorted(chosen))


def _bytes(stored: dict[str, Stored]) -> int:
    return _BYTES * sum(tensor.values for tensor in stored.values())


def _renamed(
    stored: dict[str, Stored], prefix: str, layers: Sequence[int], rows: int | None, vocabulary: int
) -> dict[str, Stored]:
    """Tensors by their names in a cut of these layers; those with one row per token have `rows` of them."""
    numbers = {str(old): str(new) for new, old in enumerate(layers)}
    taken = {}
    for key, tensor in stored.items():
        if key.startswith(prefix):
            number, _, name = key[len(prefix) :].partition(".")
            if number in numbers:
                taken[f"{prefix}{numbers[number]}.{name}"] = tensor
        elif rows is not None and tensor.shape[:1] == (vocabulary,):
            taken[key] = Stored(tensor.path, tensor.key, tensor.shape, rows)
        else:
            taken[key] = tensor
    return taken


def _cut_config(config: Any, layers: Sequence[int], rows: int | None) -> Any:
    """The configuration of a base with these of its layers only, a short window, and as many tokens as `rows`."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    count = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if not isinstance(value, list) or "layer" not in name:
            continue
        if len(value) == count:  # one entry a layer
            setattr(text, name, [value[i] for i in layers])
        elif value and all(isinstance(v, int) and v < count for v in value):  # numbers of layers
            setattr(text, name, [new for new, old in enumerate(layers) if old in value])
    text.num_hidden_layers = len(layers)
    if getattr(text, "sliding_window", None):
        text.sliding_window = min(text.sliding_window, WINDOW)
    if rows is not None:
        text.vocab_size = rows
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(text, name, None)
            if isinstance(value, int) and value >= rows:
                setattr(text, name, None)
    return config


def _left_out(
    count: int,
    layers: Sequence[int],
    wanted: Sequence[int],
    rows: int | None,
    vocabulary: int,
    text: Any,
) -> tuple[str, ...]:
    missing = [i for i in range(count) if i not in layers]
    told = []
    if missing:
        told.append(f"layers {_runs(missing)}, each like one that was checked")
    if len(wanted) > len(layers):
        told.append(f"among them the middle layer {wanted[len(wanted) // 2]}, for want of memory")
    if rows is not None:
        told.append(f"tokens {rows:,} to {vocabulary - 1:,} of embeddings and head, for want of memory")
    window = getattr(text, "sliding_window", None)
    if window and window > WINDOW:
        told.append(f"sliding windows of {window:,} tokens: they were {WINDOW} tokens, so that short rows cross them")
    return tuple(told)


def _runs(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as `1-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
