"""`tunesmith runs`."""

from __future__ import annotations

from dataclasses import asdict

import click

from tunesmith.cli.options import json_option, runs_root, set_option
from tunesmith.cli.output import print_json


@click.command("runs")
@set_option
@json_option
def command(overrides: tuple[str, ...], as_json: bool) -> None:
    """List the runs, newest first. Another folder: --set output.dir=DIR."""
    from tunesmith.cli.tables import print_runs
    from tunesmith.runs import list_runs

    root = runs_root(overrides)
    summaries = [run.summary() for run in list_runs(root)]
    if as_json:
        print_json({"runs": [asdict(summary) for summary in summaries]})
    elif summaries:
        print_runs(summaries)
    else:
        click.echo(f"no runs in {root}; begin with `tunesmith run RECIPE`")
