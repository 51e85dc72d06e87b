"""What an earlier process left in a run's folder: its result, and its model to talk to."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.pipeline.continuing import STOPPED
from tunesmith.pipeline.evidence import read_comparison, read_training
from tunesmith.pipeline.opening import open_base, open_tuned
from tunesmith.pipeline.result import Model, Result
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder
from tunesmith.tasks import restore_task
from tunesmith.text.render import Renderer
from tunesmith.verdict.types import Verdict

TASK = "task.json"
VERDICT = "verdict.json"


def load_run(folder: RunFolder) -> Result:
    """What an earlier process left in a run's folder."""
    if not folder.recipe_file.is_file():
        raise RecipeError("this run did not get as far as its recipe", where=str(folder.path))
    recipe = load_recipe(folder.recipe_file)
    compared = read_comparison(folder)
    return Result(
        folder,
        recipe,
        compared.comparison,
        read_training(folder),
        read_verdict(folder),
        compared.facts,
        compared.forgetting,
        compared.seeds,
    )


def read_verdict(folder: RunFolder) -> Verdict | None:
    """The run's verdict; None where there is none. Raises `VerificationError` for a file that holds something else."""
    path = folder.path / VERDICT
    if not path.is_file():
        return None
    try:
        return Verdict(**_tuples(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, TypeError, AttributeError) as problem:
        raise VerificationError(
            f"this file does not hold a verdict: {problem}",
            where=str(path),
            expected="a verdict as this version of Tunesmith, or an earlier one, wrote it",
            fix="run the recipe again with --new, or read it with the version that wrote it",
        ) from problem


def load_model(folder: RunFolder, recipe: Recipe, *, tuned: bool) -> Model:
    """The run's tuned model, or its base asked in the same way."""
    if tuned and not (folder.adapter.is_dir() or folder.model.is_dir()):
        stopped = bool(folder.manifest().get(STOPPED))
        raise RecipeError(
            "this run has no tuned model yet" + (": it stopped before training" if stopped else ""),
            where=str(folder.path),
            fix=f"tunesmith run RECIPE --out {folder.path} --train-anyway" if stopped else "tunesmith run RECIPE",
        )
    base = open_tuned(recipe, folder) if tuned else open_base(recipe)[0]
    engine = TorchEngine(base.model, Renderer(base.tokenizer, recipe.base.chat_template), base.context)
    return Model(engine, restore_task(json.loads((folder.path / TASK).read_text(encoding="utf-8"))), recipe)


def _tuples(kept: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
