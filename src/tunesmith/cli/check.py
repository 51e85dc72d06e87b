"""`tunesmith check RECIPE|FILE`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, out_option, recipe_from, recipe_options
from tunesmith.cli.output import error_json, only_json, print_error, print_json
from tunesmith.errors import RecipeError

SECTIONS = ("goal", "task", "data", "base", "method", "train", "remotes", "evaluate", "verdict")


@click.command("check", cls=RecipeCommand, sections=SECTIONS)
@click.argument("recipe", type=RECIPE_FILE)
@out_option
@click.option(
    "--quick",
    is_flag=True,
    help="Leave out what takes long: doubtful labels, and near-duplicates where the split does not need them.",
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the costs as one HTML page too.")
@click.option("--fix", "fixing", is_flag=True, help="Write cleaned copies beside the files, with a log of each change.")
@click.option("--fix-also", multiple=True, metavar="CODE", help="Mend this kind of finding too; repeatable.")
@recipe_options
def command(
    recipe: Path,
    out: Path | None,
    quick: bool,
    html: Path | None,
    fixing: bool,
    fix_also: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
    trust_remote_code: bool,
) -> int:
    """Say what is wrong with the data, what will be learnt, and what a run will cost.

    RECIPE is a recipe, or a bare file of rows. With --out, the report is also written to DIR/check.json. What tuning
    would cost, in licence, rows, work and machines, stands at the end, and with --html on a page of its own.
    With --fix nothing but the copies and their logs is written: training and validation files stay as they are, and
    a test file is never mended. Ends with 3 where the data has errors, with 2 where only settings of remotes are
    wrong; warnings alone end with 0. Where the base cannot be loaded, the costs that are known are told all the same.
    """
    from tunesmith import pipeline
    from tunesmith.cli.display import open_display
    from tunesmith.cli.tables import print_check, print_fixed
    from tunesmith.recipe import is_recipe_file
    from tunesmith.recipe.schema import Data
    from tunesmith.runs import CHECK_REPORT, write_json
    from tunesmith.runs.events import event_json

    with only_json(as_json), open_display() as display:
        if is_recipe_file(recipe) or not recipe.suffix:
            settings = recipe_from(recipe, overrides, trust_remote_code)
            data, task_type = settings.data, str(settings.task.type)
            report = pipeline.check(settings, display, quick=quick)
        elif overrides or trust_remote_code or html is not None:
            raise RecipeError(
                "a bare file of rows has no settings, and no costs",
                where=str(recipe),
                fix=f"write a recipe: tunesmith init {recipe}",
            )
        else:
            data, task_type = Data(train=str(recipe)), "auto"
            report = pipeline.check_file(recipe, display, quick=quick)
        fixed = pipeline.fix(data, task_type=task_type, also=fix_also) if fixing or fix_also else ()
    if out is not None:
        write_json(out / CHECK_REPORT, event_json(report.to_dict()))
    if html is not None:
        from tunesmith.pipeline.tuning_costs_page import write_tuning_costs

        write_tuning_costs(html, report, recipe.stem)
    problem = report.problem
    if as_json:
        told = error_json(problem, report.exit_code) if problem is not None else {}
        print_json({**report.to_dict(), **({"fixed": [asdict(f) for f in fixed]} if fixed else {}), **told})
    else:
        print_check(report)
        print_fixed(fixed)
        if html is not None:
            click.echo(f"page: {html}")
        if problem is not None:
            print_error(problem, report.exit_code, as_json=False)
    return report.exit_code
