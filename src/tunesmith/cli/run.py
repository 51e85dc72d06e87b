"""`tunesmith run RECIPE`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, new_option, nproc_option, out_option, recipe_options
from tunesmith.cli.running import in_processes, run_through

SECTIONS = ("goal", "task", "data", "base", "method", "train", "baselines", "evaluate", "verdict", "output")


@click.command("run", cls=RecipeCommand, sections=SECTIONS)
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
    """Check, measure baselines, train, evaluate, and give a verdict.

    A run that was stopped is continued where it stopped; a finished one is printed again, unless --new.
    """
    in_processes(nproc)
    run_through("verdict", recipe, overrides, out=out, new=new, as_json=as_json, trust_remote_code=trust_remote_code)
