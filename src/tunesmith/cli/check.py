"""`tunesmith check RECIPE|FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, out_option, recipe_from, recipe_options
from tunesmith.cli.output import only_json, print_json
from tunesmith.errors import RecipeError

SECTIONS = ("task", "data", "base", "method", "train", "evaluate")


@click.command("check", cls=RecipeCommand, sections=SECTIONS)
@click.argument("recipe", type=RECIPE_FILE)
@out_option
@recipe_options
def command(recipe: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool, trust_remote_code: bool) -> int:
    """Say what is wrong with the data, what will be learnt, and what a run will cost.

    RECIPE is a recipe, or a bare file of rows. With --out, the report is also written to DIR/check.json.
    Ends with 3 where the data has errors; warnings alone end with 0.
    """
    from tunesmith import pipeline
    from tunesmith.cli.display import open_display
    from tunesmith.cli.tables import print_check
    from tunesmith.recipe import is_recipe_file
    from tunesmith.runs import CHECK_REPORT, write_json
    from tunesmith.runs.events import event_json

    with only_json(as_json), open_display() as display:
        if is_recipe_file(recipe) or not recipe.suffix:
            report = pipeline.check(recipe_from(recipe, overrides, trust_remote_code), display)
        elif overrides or trust_remote_code:
            raise RecipeError(
                "a bare file of rows has no settings", where=str(recipe), fix=f"write a recipe: tunesmith init {recipe}"
            )
        else:
            report = pipeline.check_file(recipe)
    if out is not None:
        write_json(out / CHECK_REPORT, event_json(report.to_dict()))
    if as_json:
        print_json(report.to_dict())
    else:
        print_check(report)
    return report.exit_code
