"""Models of earlier steps, as folders that load like the run's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.conftest import make_project
from tunesmith.errors import VerificationError
from tunesmith.models.load import load_base
from tunesmith.models.methods import load_tuned
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.run import run
from tunesmith.pipeline.snapshots import snapshot_steps, write_snapshots
from tunesmith.recipe import load_recipe
from tunesmith.recipe.overrides import resolve_paths
from tunesmith.recipe.schema import Recipe

SETTINGS = {"max_steps": None, "epochs": 3, "batch_size": 20, "keep_epochs": 2, "evaluations": 0, "select_by": "last"}


@pytest.fixture(scope="module", params=["lora", "bottleneck", "full"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base: Path) -> Result:
    """Three epochs on a tiny base."""
    folder = make_project(tmp_path_factory.mktemp("snapshots"), base)
    asked = load_recipe(folder / "recipe.yaml").model_dump()
    asked["method"].update(type=request.param, bottleneck_size=8)
    asked["train"].update(SETTINGS)
    recipe = Recipe.model_validate(resolve_paths(asked, folder))
    return run(recipe, out=folder / "run", through="train")


def tuned_tensors(result: Result, folder: Path) -> dict[str, torch.Tensor]:
    """What is tuned in a model loaded from a folder."""
    base = load_base(result.recipe.base)
    return {name: p.detach().clone() for name, p in load_tuned(base, folder, result.recipe.method).trained().items()}


def test_each_kept_epoch_becomes_the_model_it_was(trained):
    steps = snapshot_steps(trained.folder)
    last = int(trained.training["steps"])
    assert len(steps) == 2 and steps[-1] == last and steps[0] == last * 2 // 3
    folders = write_snapshots(trained.recipe, trained.folder, steps)
    kept = {
        step: load_file(trained.folder.checkpoints / f"epoch-{step:07d}" / "parameters.safetensors") for step in steps
    }
    for step, folder in folders.items():
        found = tuned_tensors(trained, folder)
        assert found and all(torch.equal(tensor, kept[step][name]) for name, tensor in found.items())
    own = trained.folder.adapter if trained.folder.adapter.is_dir() else trained.folder.model
    same, other = tuned_tensors(trained, own), tuned_tensors(trained, folders[steps[0]])
    assert all(torch.equal(tensor, kept[last][name]) for name, tensor in same.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in same.items())
    written = {path: path.stat().st_mtime_ns for path in folders[last].iterdir()}
    write_snapshots(trained.recipe, trained.folder, steps)
    assert written == {path: path.stat().st_mtime_ns for path in folders[last].iterdir()}


def test_a_step_that_was_not_kept_is_refused(trained):
    with pytest.raises(VerificationError, match="step 1 were not kept"):
        write_snapshots(trained.recipe, trained.folder, [1])


def test_weights_of_another_method_are_refused(trained):
    other = trained.recipe.method.model_copy(update={"type": "lora", "rank": 2})
    recipe = trained.recipe.model_copy(update={"method": other})
    last = int(trained.training["steps"])
    folder = trained.folder.path / "snapshots" / f"step-{last}"
    if folder.is_dir():
        folder.rename(folder.with_name("aside"))
    with pytest.raises(VerificationError, match="of another method"):
        write_snapshots(recipe, trained.folder, [last])
    assert not folder.exists()
