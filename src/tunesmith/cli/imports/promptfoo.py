"""`tunesmith import promptfoo CONFIG`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.output import print_json


@click.command("promptfoo")
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="imported",
    show_default=True,
    metavar="DIR",
    help="Folder to write into.",
)
@click.option("--base", default="embedded:base", show_default=True, help="Base to be measured.")
@json_option
def command(config: Path, out: Path, base: str, as_json: bool) -> None:
    """Make an evaluation of a config of promptfoo: its tests as rows, its asserts as metrics, in a recipe.

    What an assert needs beyond a metric (code, a judge, a file) is said, and nothing is run or sent anywhere. The
    recipe of OUT is never overwritten.
    """
    from tunesmith.service.moving.promptfoo import move_config

    moved = move_config(config, out, base)
    if as_json:
        found = {"rows": moved.rows, "metrics": moved.metrics, "notes": moved.notes}
        print_json({"recipe": str(moved.recipe), **found})
        return
    for note in moved.notes:
        click.echo(f"  {note}")
    click.echo(f"{moved.rows:,} rows, by {', '.join(moved.metrics) or 'the usual metric'}")
    click.echo(f"written: {moved.recipe}\nnext: tunesmith baselines {moved.recipe}")
