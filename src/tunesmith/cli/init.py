"""`tunesmith init FILE`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import click

from tunesmith.cli.options import json_option, set_option
from tunesmith.cli.output import print_json
from tunesmith.errors import RecipeError


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="recipe.yaml", show_default=True, help="File to write.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@set_option
@json_option
def command(file: Path, out: Path, yes: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Look at a file of examples and write a recipe for it.

    Proposes task, columns, base and method, and writes them with comments. Never overwrites a file.
    """
    from tunesmith.cli.starter import starter_recipe
    from tunesmith.data import propose
    from tunesmith.runs import write_text

    if out.exists():
        raise RecipeError(
            "this file exists and is never overwritten", where=str(out), fix="choose another with --out FILE"
        )
    proposal = propose(file)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "recipe"
    data = {**proposal.data, "train": os.path.relpath(file.resolve(), out.resolve().parent)}
    text = starter_recipe(name, data, proposal.task, proposal.reasons, overrides, folder=out.resolve().parent)
    if not as_json:
        click.echo(f"{file}: {proposal.rows:,} rows")
        for reason in proposal.reasons:
            click.echo(f"  {reason}")
        for warning in proposal.warnings:
            click.echo(f"  {click.style('warning', fg='yellow')}: {warning}")
        click.echo(f"\n{text}")
        if not yes and sys.stdin.isatty():
            click.confirm(f"Write {out}?", default=True, abort=True)
    write_text(out, text)
    if as_json:
        found = {"rows": proposal.rows, "reasons": proposal.reasons, "warnings": proposal.warnings}
        print_json({"recipe": str(out), "text": text, **found})
    else:
        click.echo(f"written: {out}\nnext: tunesmith check {out}")
