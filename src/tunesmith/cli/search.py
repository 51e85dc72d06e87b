"""`tunesmith search RECIPE`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, new_option, out_option, recipe_from, recipe_options
from tunesmith.cli.output import RunInterrupted, only_json, print_json

if TYPE_CHECKING:
    from tunesmith.pipeline.searching.flow import Found


@click.command(
    "search",
    cls=RecipeCommand,
    sections=("search", "train", "method", "output"),
    help="""Try the settings that a recipe's `search` section names, and run the best of them to a verdict.

    Every trial is a run of its own, trained and compared on validation rows; no test row is answered before the choice.
    A search that was stopped goes on where it stopped.
    """,
)
@click.argument("recipe", type=RECIPE_FILE)
@out_option
@new_option
@click.option("--trials-only", is_flag=True, help="Choose the best settings, and run nothing to a verdict.")
@recipe_options
def command(
    recipe: Path,
    out: Path | None,
    new: bool,
    trials_only: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    read = recipe_from(recipe, overrides, trust_remote_code)
    if "RANK" in os.environ:
        raise click.UsageError("a search trains in one process: start it without torchrun")
    from tunesmith.cli.display import open_display
    from tunesmith.pipeline.searching.flow import search_recipe

    with only_json(as_json), open_display() as display:
        try:
            found = search_recipe(read, out=out, new=new, trials_only=trials_only, listener=display)
        except KeyboardInterrupt:
            raise RunInterrupted(out.resolve() if out is not None and out.is_dir() else None) from None
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: Found) -> None:
    """The trials, best first, and what the best came to."""
    from rich.console import Console
    from rich.table import Table

    from tunesmith.cli.tables import print_result
    from tunesmith.verdict.report_search import value_text
    from tunesmith.verdict.wording import duration

    table = Table(box=None, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column(found.score_name.replace("_", " "), justify="right")
    keys = list(found.best.values)
    for key in keys:
        table.add_column(key, justify="right", overflow="fold")
    table.add_column("time", justify="right")
    table.add_column("", overflow="fold")
    sign = 1 if found.trials.direction == "minimize" else -1
    ranked = sorted(found.trials.trials, key=lambda t: (t.score is None, sign * (t.score or 0.0), t.number))
    for trial in ranked:
        chosen = trial.number == found.best.number
        note = "chosen" if chosen else f"as trial {trial.same_as}" if trial.same_as else ""
        table.add_row(
            str(trial.number),
            "failed" if trial.score is None else f"{trial.score:.4f}",
            *(value_text(trial.values[key]) for key in keys),
            duration(trial.seconds),
            (trial.error or note).splitlines()[0] if trial.error or note else "",
            style="green" if chosen else "red" if trial.state == "failed" else "",
        )
    console = Console(markup=False)  # values and errors may have brackets: [q_proj], tunesmith[search]
    console.print(table)
    if found.trials.ended == "time":
        console.print(f"the time was over after {len(found.trials.trials)} of {found.trials.asked} trials")
    if found.result is not None:
        print_result(found.result)
    else:
        console.print(f"the best settings: {found.folder / 'best.yaml'}", soft_wrap=True)
    console.print(f"the trials: {found.folder / 'search.html'}", soft_wrap=True)
