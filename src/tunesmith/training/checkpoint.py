"""Checkpoints: everything needed to go on bitwise, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import ResourceError, VerificationError
from tunesmith.models.writing import save_state, system_errors
from tunesmith.runs import staged_folder
from tunesmith.training import processes
from tunesmith.training.optimizers import Optimizer
from tunesmith.training.sharding import full_tensors, load_full_tensors

_LATEST, _EPOCH, _BEST = "step-", "epoch-", "best"
_PARAMETERS, _OPTIMIZER, _DIGESTS = "parameters.safetensors", "optimizer.pt", "sha256.json"


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
    computed: int = 0
    streams: int = 0
    scaler: dict[str, Any] | None = None
    peak_memory: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint holds beside progress: live tensors that training changes, the optimiser, and whose they are.

    `identity`: hash of the base; a checkpoint of another one is refused. `sharded`: every process has a share of the
    tensors; they are gathered to be written, and all processes save and load together.
    """

    tensors: Mapping[str, Tensor]
    optimizer: Optimizer
    identity: str = ""
    sharded: bool = False

    def whole(self) -> dict[str, Tensor]:
        """The tensors as they are written, on the CPU; nothing in processes that do not write."""
        if self.sharded:
            return full_tensors(self.tensors)
        return {name: t.detach().to("cpu").contiguous() for name, t in self.tensors.items()}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy written tensors into the live ones."""
        if self.sharded:
            load_full_tensors(self.tensors, tensors)
            return
        for name, live in self.tensors.items():
            live.copy_(tensors[name])


def save_checkpoint(folder: Path, progress: Progress, state: State, keep: int) -> None:
    """Write `step-N` beside the others, atomically, and drop all but the newest `keep`."""
    whole, optimizer = state.whole(), state.optimizer.state_dict()
    tensors = {
        "optimizer": processes.gather(optimizer) if state.sharded else [optimizer],
        "rng": torch.random.get_rng_state(),
    }
    if not processes.first():
        return
    if torch.cuda.is_available():
        tensors["cuda_rng"] = torch.cuda.get_rng_state_all()
    with _whole(folder / f"{_LATEST}{progress.step:07d}") as target:
        save_file(whole, target / _PARAMETERS)
        save_state(target / _OPTIMIZER, tensors)
        (target / "progress.json").write_text(json.dumps(asdict(progress)))
        (target / "base.json").write_text(json.dumps({"base_sha256": state.identity}))
        digests = {path.name: _sha256(path) for path in sorted(target.iterdir())}
        (target / _DIGESTS).write_text(json.dumps(digests))
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)


def save_epoch(folder: Path, step: int, state: State, keep: int) -> None:
    """Keep the weights of an epoch's end, and drop all but the newest `keep` of these."""
    whole = state.whole()
    if processes.first():
        with _whole(folder / f"{_EPOCH}{step:07d}") as target:
            save_file(whole, target / _PARAMETERS)
        for old in _numbered(folder, _EPOCH)[:-keep]:
            shutil.rmtree(old)


def kept_weights(folder: Path, *, epochs: bool = True) -> dict[int, Path]:
    """Files with the trained tensors by step: of the ends of epochs that were kept, or of the checkpoints."""
    prefix = _EPOCH if epochs else _LATEST
    return {int(p.name.removeprefix(prefix)): p / _PARAMETERS for p in _numbered(folder, prefix)}


def save_best(folder: Path, state: State) -> None:
    """Keep the present weights as the best ones."""
    whole = state.whole()
    if processes.first():
        with _whole(folder / _BEST) as target:
            save_file(whole, target / _PARAMETERS)


def load_latest(folder: Path, state: State) -> Progress | None:
    """Restore the newest checkpoint into parameters, optimiser and random state; None where there is none.

    Raises `VerificationError` where it is damaged, or was made on another base or with other trained tensors.
    """
    steps = _steps(folder)
    if not steps:
        return None
    newest = steps[-1]
    _verify(newest, steps, state)
    state.take(load_file(newest / _PARAMETERS))
    kept = torch.load(newest / _OPTIMIZER, weights_only=True)
    state.optimizer.load_state_dict(kept["optimizer"][processes.rank() if state.sharded else 0])
    torch.random.set_rng_state(kept["rng"])
    if "cuda_rng" in kept and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(kept["cuda_rng"])
    return Progress(**json.loads((newest / "progress.json").read_text()))


def _verify(newest: Path, steps: list[Path], state: State) -> None:
    digests = json.loads((newest / _DIGESTS).read_text()) if (newest / _DIGESTS).is_file() else {}
    damaged = [name for name, digest in digests.items() if not _intact(newest / name, digest)]
    if damaged or not digests:
        older = f"training then goes on from {steps[-2].name}" if len(steps) > 1 else "training then begins again"
        raise VerificationError(
            f"the checkpoint is damaged: {', '.join(damaged) or _DIGESTS}",
            where=str(newest),
            fix=f"remove this folder; {older}",
        )
    made_on = json.loads((newest / "base.json").read_text())["base_sha256"]
    if made_on != state.identity:
        raise VerificationError(
            "the checkpoint was made on another base",
            where=str(newest),
            expected=f"a base with the weights {made_on[:12]}…, not {state.identity[:12]}…",
            fix="restore the base, or begin a new run with --new",
        )
    with safe_open(newest / _PARAMETERS, framework="pt") as file:
        kept = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    live = {name: tuple(p.shape) for name, p in state.tensors.items()}
    if kept != live:
        names = sorted(name for name in kept.keys() | live.keys() if kept.get(name) != live.get(name))
        raise VerificationError(
            f"the checkpoint holds other trained tensors, such as {names[0]}: {kept.get(names[0], 'nothing')}",
            where=str(newest),
            expected=f"{live.get(names[0], 'nothing')}",
            fix="begin a new run with --new, or go back to the method of this one",
        )


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and _sha256(path) == digest


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_best(folder: Path, state: State) -> bool:
    """Restore the best weights; False where none were kept."""
    if not (folder / _BEST).is_dir():
        return False
    state.take(load_file(folder / _BEST / _PARAMETERS))
    return True


def _steps(folder: Path) -> list[Path]:
    return _numbered(folder, _LATEST)


def _numbered(folder: Path, prefix: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"{prefix}*") if p.is_dir() and p.name.removeprefix(prefix).isdigit())


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
