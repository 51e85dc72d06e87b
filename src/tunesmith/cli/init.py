"""`tunesmith init SOURCE`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import json_option, set_option
from tunesmith.cli.output import print_json
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.data.sources import Address


@click.command("init")
@click.argument("source", metavar="FILE")
@click.option("--out", type=click.Path(path_type=Path), default="recipe.yaml", show_default=True, help="File to write.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@set_option
@json_option
def command(source: str, out: Path, yes: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Look at a file of examples and write a recipe for it.

    FILE is anything data.train may be: a file (packed too), a folder of data sets or hf://ORG/NAME#SPLIT, or a query
    such as sqlite:///FILE#TABLE. Proposes task, columns, base and method, and writes them with comments. Asks only on a
    terminal; with --yes or in a pipe the proposal is taken and printed. Never overwrites a file.
    """
    from tunesmith.cli.starter import starter_recipe
    from tunesmith.data import propose
    from tunesmith.data.sources import address_of
    from tunesmith.runs import write_text

    if out.exists():
        raise RecipeError(
            "this file exists and is never overwritten", where=str(out), fix="choose another with --out FILE"
        )
    address = address_of(source)
    proposal = propose(source)
    folder = out.resolve().parent
    data = {**proposal.data, "train": _as_written(source, address, folder)}
    text = starter_recipe(_name_of(address), data, proposal.task, proposal.reasons, overrides, folder=folder)
    if not as_json:
        click.echo(f"{address.shown}: {proposal.rows:,} rows")
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


def _as_written(source: str, address: Address, folder: Path) -> str:
    """The source as the recipe names it: a path counts from the recipe's folder, an address is left alone."""
    if address.kind in ("file", "folder"):
        path = os.path.relpath(address.path.resolve(), folder)
        return f"{path}#{address.part}" if address.part else path
    if address.kind == "sqlite":
        # The database is found from any folder, as the recipe may be used from another one.
        place = Path(address.place.partition("://")[2][1:]).resolve()
        return f"sqlite:///{place}" + (f"#{address.part}" if address.part else "")
    return address.shown if address.kind == "hub" else source


def _name_of(address: Address) -> str:
    """A name for the recipe: what the source is called, without endings."""
    stem = Path(address.place.partition("?")[0]).name
    while (shorter := Path(stem).stem) != stem:
        stem = shorter
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "recipe"
