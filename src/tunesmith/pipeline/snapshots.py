"""Models of earlier steps: the weights that a training kept at the ends of its epochs, or to go on from, as folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from tunesmith.errors import VerificationError
from tunesmith.models.methods import Tuning, attach
from tunesmith.pipeline.opening import open_base
from tunesmith.pipeline.training import write_tuned
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, staged_folder
from tunesmith.training.checkpoint import kept_weights


def snapshot_steps(folder: RunFolder) -> list[int]:
    """The steps at which epochs ended and weights were kept."""
    return sorted(kept_weights(folder.checkpoints))


def write_snapshots(recipe: Recipe, folder: RunFolder, steps: Sequence[int]) -> dict[int, Path]:
    """Write the models of these steps as `snapshots/step-N` in the run's folder, and return the folders.

    Those that are there already are left as they are. `recipe` is the run's resolved one. Raises `VerificationError`
    for a step whose weights are not there or do not belong to the recipe.
    """
    targets = {step: folder.path / "snapshots" / f"step-{step}" for step in steps}
    missing = {step: target for step, target in targets.items() if not target.is_dir()}
    if not missing:
        return targets
    weights = kept_weights(folder.checkpoints, epochs=False) | kept_weights(folder.checkpoints)
    base, added = open_base(recipe)
    tuning = attach(base, recipe.method, recipe.train.seed, added)
    for step, target in missing.items():
        _put(tuning, weights.get(step), step)
        with staged_folder(target) as staged:
            write_tuned(staged, recipe, base, tuning)
    return targets


@torch.no_grad()
def _put(tuning: Tuning, weights: Path | None, step: int) -> None:
    """Copy kept tensors into the tuned parameters."""
    if weights is None:
        raise VerificationError(f"the weights of step {step} were not kept", fix="set train.keep_epochs")
    kept, live = load_file(weights), tuning.trained()
    if {name: t.shape for name, t in kept.items()} != {name: p.shape for name, p in live.items()}:
        raise VerificationError(
            f"the weights of step {step} are of another method", where=str(weights), fix="begin a new run with --new"
        )
    for name, parameter in live.items():
        parameter.copy_(kept[name])
