"""Which run a command goes on with: the folder it names, the newest unfinished run of its recipe, or a new one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.reading import source_sha256
from tunesmith.errors import DataError, RecipeError
from tunesmith.pipeline.named_files import named_files
from tunesmith.recipe import differences, dump_recipe, load_recipe, recipe_hash
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, list_runs, write_text

Through = Literal["train", "baselines", "evaluate", "verdict"]
STOPPED = "stopped_before_training"
"""In the manifest: whether the run ended because an alternative was good enough."""
ASKED = "recipe.asked.yaml"
"""The recipe as it was given, `auto` and all: what a repeated command is compared with."""
_HOLDS: Mapping[Through, tuple[Through, ...]] = {
    "train": ("train", "evaluate", "verdict"),
    "baselines": ("baselines", "evaluate", "verdict"),
    "evaluate": ("evaluate", "verdict"),
    "verdict": ("verdict",),
}
"""By what is wanted, the commands after which it is there."""


def identity(recipe: Recipe) -> Recipe:
    """The recipe without what only says how far to go: a run that stopped before training can be told to train."""
    return recipe.model_copy(update={"goal": recipe.goal.model_copy(update={"when_reached": "stop"})})


def folder_for(recipe: Recipe, out: Path | None, new: bool, through: Through) -> RunFolder:
    """The run's folder: the one asked for, one to continue, or a new one."""
    if out is not None:
        if new and out.exists():
            raise RecipeError("--new with a folder that exists", where=str(out), fix="choose another folder")
        return RunFolder.create_at(out)
    root, name = Path(recipe.output.dir), recipe.name or Path(recipe.data.train).stem.replace(" ", "-")
    if not new:
        wanted = recipe_hash(identity(recipe))
        same = [f for f in list_runs(root) if f.manifest().get("recipe_sha256") == wanted]
        unfinished = [f for f in same if not goal_reached(f, recipe, through) and not f.running]
        finished = [f for f in same if goal_reached(f, recipe, through)]
        for folder in unfinished[:1] or finished[:1]:
            return folder
    return RunFolder.create(root, safe_name(name))


def earlier_recipe(folder: RunFolder) -> Recipe | None:
    """The resolved recipe that an earlier part of this run left."""
    return load_recipe(folder.recipe_file) if folder.recipe_file.is_file() else None


def remember(folder: RunFolder, recipe: Recipe, check: bool) -> None:
    """Keep the recipe as it was given; `check` refuses a folder that holds a run of another one."""
    asked = folder.path / ASKED
    if not asked.is_file():
        folder.update_manifest(recipe_sha256=recipe_hash(identity(recipe)))
        write_text(asked, dump_recipe(recipe))
        return
    changed = differences(identity(load_recipe(asked)), identity(recipe)) if check else []
    if changed:
        key, before, now = changed[0]
        raise RecipeError(
            f"this folder holds a run of another recipe: {key} was {before!r} and is now {now!r}"
            + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""),
            where=str(folder.path),
            fix="choose another --out, or go back to the recipe of this run",
        )


def asked_recipe(folder: RunFolder) -> Recipe:
    """The recipe of a run as it was given. Raises `RecipeError` where the run was never begun."""
    return load_recipe(folder.path / ASKED)


def goal_reached(folder: RunFolder, recipe: Recipe, through: Through) -> bool:
    """Whether the run went through this stage, on files that are still what they were.

    A run that stopped before training has reached what it wanted, unless training is what is wanted now.
    """
    manifest = folder.manifest()
    reached = manifest.get("reached", {})
    if not any(reached.get(stage) for stage in _HOLDS[through]):
        return False
    if manifest.get(STOPPED) and (through in ("train", "evaluate") or recipe.goal.when_reached == "train"):
        return False
    data = manifest.get("data", {})
    known = data.get("files_sha256", {})
    files = {part: getattr(recipe.data, part) for part in known}
    return all(source and _holds(source, known[part]) for part, source in files.items()) and _others_hold(recipe, data)


def _others_hold(recipe: Recipe, data: Mapping[str, Any]) -> bool:
    """Whether metrics, schema, documents and general texts are what they were."""
    try:
        return bool(named_files(recipe) == data.get("other_files_sha256", {}))
    except DataError:
        return False


def _holds(source: str, sha256: str) -> bool:
    """Whether a source still can be read and gives what it gave."""
    try:
        return source_sha256(source) == sha256
    except DataError:
        return False


def safe_name(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).lstrip("._-")
    return kept or "run"
