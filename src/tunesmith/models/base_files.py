"""Whether a base can be tuned at all, told from its files before anything is loaded.

A folder is looked at as it is; of a hub base only what the hub's cache on this machine holds. Sizes and parameters come
from the headers of safetensors files, which are a few kilobytes however large the weights are.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Weights = Literal["safetensors", "gguf", "pickle", "none"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_INDEX = "model.safetensors.index.json"
_LENGTH = struct.Struct("<Q")
_MOST_HEADER = 100 << 20
"""Bytes of the longest header that the safetensors format allows."""
_UNTUNABLE_QUANTISERS = ("gptq", "awq", "aqlm", "hqq", "exl2", "compressed-tensors", "fp8", "bitnet")


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """What the files of a base say.

    where: the folder, or why there is none to look at. known: whether there were files to look at.
    architecture: its `model_type`. bytes, shards: of the weights' files. parameters: by the headers, each tensor once.
    context: tokens, by the configuration. obstacles: why it cannot be tuned. notes: what is worth knowing.
    """

    where: str
    known: bool
    architecture: str | None = None
    weights: Weights | None = None
    shards: int = 0
    bytes: int = 0
    parameters: int | None = None
    context: int | None = None
    tokenizer: bool | None = None
    obstacles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def look_at_files(folder: Path | None, *, name: str, causal: Iterable[str] = ()) -> BaseFiles:
    """What the files of a base say. `folder`: None for a hub base that is not on this machine.

    causal: `model_type`s that `transformers` loads as language models; empty: not asked about. Reads no weights.
    """
    if folder is None:
        return BaseFiles(f"{name}: not on this machine", known=False, notes=("its files come when it is loaded",))
    config = _config(folder / "config.json")
    weights, files = _weights(folder)
    obstacles, notes = list(_config_obstacles(config, folder, frozenset(causal))), []
    parameters: int | None = None
    if weights == "safetensors":
        parameters, broken = _parameters(files)
        obstacles += broken
        missing = _missing_shards(folder)
        if missing:
            obstacles.append(f"{len(missing)} of its weight files are missing, such as {missing[0]}")
        if len(files) > 1:
            notes.append(f"its weights lie in {len(files)} files")
    else:
        obstacles.append(_NO_SAFETENSORS[weights])
    tokenizer = any((folder / file).is_file() for file in TOKENIZER_FILES)
    if not tokenizer:
        obstacles.append("it has no tokenizer: put the tokenizer's files beside its configuration")
    if (folder / "adapter_config.json").is_file():
        obstacles.append("it is an adapter and no whole model: merge it into its base first")
    return BaseFiles(
        where=str(folder),
        known=True,
        architecture=_text(config.get("model_type")) if config else None,
        weights=weights,
        shards=len(files),
        bytes=sum(path.stat().st_size for path in files),
        parameters=parameters,
        context=_context(config),
        tokenizer=tokenizer,
        obstacles=tuple(obstacles),
        notes=tuple(notes),
    )


def cached_folder(name: str, revision: str | None) -> Path | None:
    """Where the hub's cache on this machine holds a hub base, or None. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


_NO_SAFETENSORS: dict[Weights, str] = {
    "gguf": "it has GGUF files only, which are made for answering: get the same model as safetensors",
    "pickle": "its weights are pickled (.bin, .pt), which can run code when read: get or convert them as safetensors",
    "none": "it has no weights: model.safetensors is missing",
}


def _weights(folder: Path) -> tuple[Weights, list[Path]]:
    """The kind of weights in a folder that counts, and their files."""
    kinds: tuple[tuple[Weights, tuple[str, ...]], ...] = (
        ("safetensors", ("model*.safetensors",)),
        ("gguf", ("*.gguf",)),
        ("pickle", ("pytorch_model*.bin", "*.pt", "*.pth")),
    )
    for kind, patterns in kinds:
        files = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
        if files:
            return kind, files
    return "none", []


def _missing_shards(folder: Path) -> list[str]:
    """Files that the index of sharded weights names and that are not there."""
    index = _config(folder / _INDEX)
    named = index.get("weight_map") if index else None
    if not isinstance(named, Mapping):
        return []
    return sorted({str(file) for file in named.values()} - {path.name for path in folder.iterdir()})


def _parameters(files: Iterable[Path]) -> tuple[int | None, list[str]]:
    """Numbers in all tensors, and what is wrong with files; None where a header cannot be read."""
    count, broken = 0, []
    for path in files:
        size = path.stat().st_size
        try:
            with path.open("rb") as stream:
                (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
                if length > min(size, _MOST_HEADER):
                    raise ValueError("the header is longer than the file")
                header = json.loads(stream.read(length))
            tensors = [tensor for key, tensor in header.items() if key != "__metadata__"]
            count += sum(math.prod(tensor["shape"]) for tensor in tensors)
            end = _LENGTH.size + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError):
            broken.append(f"{path.name} is not a safetensors file, or is damaged")
            continue
        if end != size:
            broken.append(f"{path.name} has {size:,} bytes and should have {end:,}: get it again")
    return (None if broken else count), broken


def _config_obstacles(config: Mapping[str, Any] | None, folder: Path, causal: frozenset[str]) -> Iterable[str]:
    if config is None:
        there = (folder / "config.json").is_file()
        yield "config.json cannot be read" if there else "it has no config.json"
        return
    kind = _text(config.get("model_type"))
    if causal and kind not in causal:
        if "auto_map" in config:
            yield f"{kind or 'its architecture'} is code of its own: it needs --trust-remote-code"
        else:
            yield f"{kind or 'an unnamed architecture'} is no language model that transformers loads"
    quantised = config.get("quantization_config")
    method = _text(quantised.get("quant_method")) if isinstance(quantised, Mapping) else None
    if method in _UNTUNABLE_QUANTISERS:
        yield f"its weights are quantised ({method}): tune the model they were made from"


def _context(config: Mapping[str, Any] | None) -> int | None:
    """The longest row in tokens by the configuration, where it says so under one of the usual names."""
    for part in (config or {}, (config or {}).get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            if isinstance(part, Mapping) and isinstance(part.get(key), int):
                return int(part[key])
    return None


def _config(path: Path) -> Mapping[str, Any] | None:
    """The JSON object in a file, or None where there is none to be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
