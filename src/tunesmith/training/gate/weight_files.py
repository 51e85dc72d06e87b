"""Which files of a base hold which tensors, in a folder or on the hub; nothing is downloaded before it is needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tunesmith.errors import EngineError
from tunesmith.recipe.schema import Base

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """holding: by tensor, the name of the file it lies in. path: of a file by its name, on this machine."""

    holding: dict[str, str]
    path: Callable[[str], Path]


def weight_files(spec: Base, folder: Path | None) -> WeightFiles:
    """The safetensors files of a base: of its folder, or of the hub where there is none.

    Raises `EngineError` where there are none, one is missing or damaged, or the hub cannot be reached.
    """
    return _of_folder(folder) if folder is not None else _of_hub(spec)


def _of_folder(folder: Path) -> WeightFiles:
    def path(name: str) -> Path:
        if not (folder / name).is_file():
            raise EngineError("a weight file is missing", where=str(folder / name), fix="take the base's files again")
        return folder / name

    if (folder / _INDEX).is_file():
        return WeightFiles(_index(folder / _INDEX), path)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EngineError(
            "the base has no safetensors weights",
            where=str(folder),
            expected=f"{_SINGLE}, or several files and {_INDEX}",
            fix="use a base in this format, or convert it with save_pretrained of transformers",
        )
    return WeightFiles({key: file.name for file in files for key in _keys(file)}, path)


def _of_hub(spec: Base) -> WeightFiles:
    """From the cache, or by download."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    def get(name: str) -> Path:
        return Path(hf_hub_download(spec.model, name, revision=spec.revision))

    def path(name: str) -> Path:
        try:
            return get(name)
        except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise EngineError(
                f"the weights could not be fetched: {first_line(error)}",
                where=f"{spec.model}/{name} (hub)",
                fix="check the name and the network, or give a local folder",
            ) from error

    try:
        index = get(_INDEX)
    except (EntryNotFoundError, HfHubHTTPError, OSError):
        # A base of one file has no index. What else may be wrong is told when that file is asked for.
        return WeightFiles(dict.fromkeys(_keys(path(_SINGLE)), _SINGLE), path)
    return WeightFiles(_index(index), path)


def _index(path: Path) -> dict[str, str]:
    try:
        holding = json.loads(path.read_text())["weight_map"]
        return {str(key): str(name) for key, name in holding.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise EngineError(
            f"the list of weight files cannot be read: {first_line(error)}",
            where=str(path),
            fix="take the base model's files again",
        ) from error


def _keys(path: Path) -> list[str]:
    with damage(path), safe_open(path, framework="pt") as file:
        return list(file.keys())


@contextmanager
def damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise EngineError(
            f"the weights cannot be read: {first_line(error)}",
            where=str(path),
            fix="take the base model's files again",
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line: a line that ends in a colon with the next; or what it is."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(error).__name__
