"""Checkpoints: everything needed to go on bitwise, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import ResourceError
from tunesmith.models.writing import save_state, system_errors
from tunesmith.runs import staged_folder

_LATEST, _BEST = "step-", "best"


@dataclass(slots=True)
class Progress:
    """Where a training run stands; all of it is in every checkpoint."""

    step: int = 0
    tokens: int = 0
    supervised: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    best_loss: float | None = None
    stale: int = 0
    stopped_early: bool = False
    peak_memory: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> None:
    """Write `step-N` beside the others, atomically, and drop all but the newest `keep`."""
    state = {"optimizer": optimizer.state_dict(), "rng": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state_all()

    with _whole(folder / f"{_LATEST}{progress.step:07d}") as target:
        _save_parameters(target, parameters)
        save_state(target / "optimizer.pt", state)
        (target / "progress.json").write_text(json.dumps(asdict(progress)))
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)


def save_best(folder: Path, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Keep the present weights as the best ones."""
    with _whole(folder / _BEST) as target:
        _save_parameters(target, parameters)


def load_latest(
    folder: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Restore the newest checkpoint into parameters, optimiser and random state; None where there is none."""
    steps = _steps(folder)
    if not steps:
        return None
    newest = steps[-1]
    _load_parameters(newest, parameters)
    state = torch.load(newest / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    torch.random.set_rng_state(state["rng"])
    if "cuda_rng" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return Progress(**json.loads((newest / "progress.json").read_text()))


def load_best(folder: Path, parameters: dict[str, torch.nn.Parameter]) -> bool:
    """Restore the best weights; False where none were kept."""
    if not (folder / _BEST).is_dir():
        return False
    _load_parameters(folder / _BEST, parameters)
    return True


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_LATEST}*") if p.is_dir() and p.name.removeprefix(_LATEST).isdigit())


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder written whole or not at all, with what to do where it cannot be written."""
    try:
        with staged_folder(target) as staged, system_errors(target):
            yield staged
    except ResourceError as error:
        raise ResourceError(
            error.what,
            where=error.where,
            expected=error.expected,
            fix="free disk space or allow writing, then run the same command: it goes on from the last checkpoint",
        ) from error


def _save_parameters(target: Path, parameters: dict[str, torch.nn.Parameter]) -> None:
    tensors = {name: p.detach().to("cpu").contiguous() for name, p in parameters.items()}
    save_file(tensors, target / "parameters.safetensors")


@torch.no_grad()
def _load_parameters(source: Path, parameters: dict[str, torch.nn.Parameter]) -> None:
    tensors: dict[str, Tensor] = load_file(source / "parameters.safetensors")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
