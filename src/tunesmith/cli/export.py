"""`tunesmith export RUN TO`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import FOLDER, json_option, run_from, set_option
from tunesmith.cli.output import only_json, print_json


@click.command("export")
@click.argument("run")
@click.argument("to")
@click.option("--out", type=FOLDER, metavar="DIR", help="Where to write it; default RUN/export/TO.")
@set_option
@json_option
def command(run: str, to: str, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write the tuned model of a run for other tools.

    TO is `adapter`, a folder that the peft library loads, or `merged`, an ordinary model folder: opened again and
    compared with the tuned model before it is finished. RUN is a path, a run's name, or `last`.
    """
    folder = run_from(run, overrides)
    from tunesmith import pipeline

    with only_json(as_json):
        path = pipeline.load_run(folder).export(to, out)
    if as_json:
        print_json({"run": str(folder.path), "to": to, "path": str(path)})
    else:
        click.echo(path)
