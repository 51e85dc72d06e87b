"""`tunesmith data formats`."""

from __future__ import annotations

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.output import print_json


@click.command("formats")
@json_option
def command(as_json: bool) -> None:
    """List the formats of rows: what data.format may be, and what `data convert --to` writes."""
    from tunesmith.data.convert import FAMILIES
    from tunesmith.data.formats import Writer, formats

    known = [
        {"name": name, "title": format.title, "columns": list(format.columns), "written": isinstance(format, Writer)}
        for name, format in formats().items()
    ]
    if as_json:
        print_json({"formats": known, "targets": {name: list(written) for name, written in FAMILIES.items()}})
        return
    width = max(len(name) for name in formats())
    for format in known:
        click.echo(f"{format['name']:<{width}} {format['title']}{'' if format['written'] else '; only read'}")
    click.echo("\nOther tables are read by their columns: prompt_completion, data.columns, or data.template.")
    click.echo(f"--to also takes {', '.join(FAMILIES)}: whichever of them the rows ask for.")
