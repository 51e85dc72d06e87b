"""`tunesmith run RECIPE`."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, new_option, nproc_option, out_option, recipe_options
from tunesmith.cli.running import in_processes, run_through

train_anyway_option = click.option(
    "--train-anyway",
    is_flag=True,
    help="Train although an alternative surely reaches the target; a run that stopped for that reason goes on.",
)


def command_through(stage: Literal["train", "verdict"], name: str, sections: Sequence[str], help: str) -> click.Command:
    """A command that runs a recipe up to a stage, the training in as many processes as asked for.

    sections: of the recipe, whose settings its `--help` lists.
    """

    @click.command(name, cls=RecipeCommand, sections=sections, help=help)
    @click.argument("recipe", type=RECIPE_FILE)
    @out_option
    @new_option
    @nproc_option
    @recipe_options
    def command(recipe: Path, nproc: int, overrides: tuple[str, ...], **options: Any) -> None:
        in_processes(nproc)
        _import_pipeline(recipe, overrides)
        run_through(stage, recipe, overrides, **options)

    return train_anyway_option(command) if stage == "verdict" else command


def _import_pipeline(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Import the stages, which takes seconds, where the recipe can be read: what is wrong with it is said at once.

    Nothing that is imported is garbage, so nobody looks for any meanwhile or in it later: a fifth of the time.
    """
    from tunesmith.recipe import load_recipe

    load_recipe(recipe, overrides)
    gc.disable()
    try:
        importlib.import_module("tunesmith.pipeline")
    finally:
        gc.freeze()
        gc.enable()


command = command_through(
    "verdict",
    "run",
    ("goal", "task", "data", "base", "method", "train", "baselines", "remotes", "evaluate", "verdict", "output"),
    """Check, measure baselines, train, evaluate, and give a verdict.

    A run that was stopped is continued where it stopped; a finished one is printed again, unless --new. Where an
    alternative surely reaches goal.target before anything is trained, the run ends with that verdict.
    """,
)
