"""Runs with a tuned model in them, made without training: a base is tuned by hand, shaken, and saved as runs do."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.models.peft_side import answers, shake
from tunesmith.export.source import FolderSource, open_source
from tunesmith.export.types import Work
from tunesmith.models.artifact import Kind, Target
from tunesmith.models.methods import attach
from tunesmith.pipeline.opening import open_base
from tunesmith.recipe import dump_recipe, parse_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, staged_folder, write_text


def recipe_of(base: Path | str, method: dict[str, Any], **of_base: Any) -> Recipe:
    """A resolved recipe that trains on a file nobody reads."""
    base_of = {"model": str(base), "dtype": "float32", "chat_template": "plain", **of_base}
    return parse_recipe({"data": "rows.csv", "base": base_of, "method": {"rank": 4, **method}})


def made_run(path: Path, recipe: Recipe, seed: int = 7, std: float = 0.05) -> tuple[RunFolder, Tensor]:
    """A run with a tuned model in it, and that model's answers."""
    folder = RunFolder.create_at(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base, added = open_base(recipe)
        tuning = attach(base, recipe.method, seed=1, added=added)
        shake(base.model, seed, std)
        with staged_folder(folder.model if tuning.kind == "full" else folder.adapter) as target:
            tuning.save(target, base)
    write_text(folder.recipe_file, dump_recipe(recipe))
    return folder, answers(base.model)


def made_source(path: Path, recipe: Recipe, seed: int = 7) -> tuple[FolderSource, Tensor]:
    """The same as a source."""
    folder, tuned = made_run(path, recipe, seed)
    return open_source(folder, recipe), tuned


def work_for(source: Any, kind: Kind, precision: str, folder: Path) -> Work:
    """One writer's work, with `staged` and `scratch` in a folder."""
    staged, scratch = folder / "staged", folder / "scratch"
    staged.mkdir(parents=True)
    scratch.mkdir()
    return Work(source, Target(kind, precision), staged, scratch, tell=lambda line: None)
