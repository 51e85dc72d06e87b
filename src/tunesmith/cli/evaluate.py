"""`tunesmith evaluate RECIPE`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, new_option, out_option, recipe_options
from tunesmith.cli.running import run_through

SECTIONS = ("goal", "task", "data", "base", "method", "train", "baselines", "remotes", "evaluate", "output")


@click.command("evaluate", cls=RecipeCommand, sections=SECTIONS)
@click.argument("recipe", type=RECIPE_FILE)
@out_option
@new_option
@recipe_options
def command(
    recipe: Path, out: Path | None, new: bool, overrides: tuple[str, ...], as_json: bool, trust_remote_code: bool
) -> None:
    """Train where needed and score all candidates, without a verdict.

    What is trained and measured already is used as it is.
    """
    run_through("evaluate", recipe, overrides, out=out, new=new, as_json=as_json, trust_remote_code=trust_remote_code)
