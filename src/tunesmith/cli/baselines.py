"""`tunesmith baselines RECIPE`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, new_option, out_option, recipe_options
from tunesmith.cli.running import run_through

SECTIONS = ("goal", "task", "data", "base", "baselines", "remotes", "evaluate", "verdict", "output")


@click.command("baselines", cls=RecipeCommand, sections=SECTIONS)
@click.argument("recipe", type=RECIPE_FILE)
@out_option
@new_option
@recipe_options
def command(
    recipe: Path, out: Path | None, new: bool, overrides: tuple[str, ...], as_json: bool, trust_remote_code: bool
) -> None:
    """Measure the alternatives to tuning on the test rows.

    Trains nothing. A later `tunesmith run` of the same recipe with the same --out uses what is measured here.
    """
    run_through("baselines", recipe, overrides, out=out, new=new, as_json=as_json, trust_remote_code=trust_remote_code)
