"""`tunesmith train RECIPE`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, new_option, nproc_option, out_option, recipe_options
from tunesmith.cli.running import in_processes, run_through

SECTIONS = ("task", "data", "base", "method", "train", "output")


@click.command("train", cls=RecipeCommand, sections=SECTIONS)
@click.argument("recipe", type=RECIPE_FILE)
@out_option
@new_option
@nproc_option
@recipe_options
def command(
    recipe: Path,
    out: Path | None,
    new: bool,
    nproc: int,
    overrides: tuple[str, ...],
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """Train only: no baseline is run.

    A run that was stopped is continued where it stopped.
    """
    in_processes(nproc)
    run_through("train", recipe, overrides, out=out, new=new, as_json=as_json, trust_remote_code=trust_remote_code)
