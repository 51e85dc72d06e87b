"""`tunesmith import openai DIR`, `tunesmith import openai --pull`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.output import print_json, warn
from tunesmith.errors import RecipeError

_KEY, _URL, _ORGANIZATION, _PROJECT = "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("openai")
@click.argument("folder", metavar="[DIR]", type=_FOLDER, required=False)
@click.option("--pull", is_flag=True, help=f"Pull from the service first, with the key in ${_KEY}.")
@click.option("--out", type=_FOLDER, default="imported", show_default=True, metavar="DIR", help="Folder to write into.")
@click.option("--base", default="embedded:base", show_default=True, help="Base that stands for the models there.")
@json_option
def command(folder: Path | None, pull: bool, out: Path, base: str, as_json: bool) -> None:
    """Make recipes, rows and evaluations of what an OpenAI account holds.

    DIR is an export: JSON as the API answers with, and files under their ids or names. With --pull everything is read
    from the service into DIR (default OUT/export) with your own key: GET requests over HTTPS alone, nothing that costs
    anything, and what is there already is not asked for again. $OPENAI_BASE_URL names another address, such as Azure's
    …/openai/v1. Nothing that exists in OUT is overwritten.
    """
    from tunesmith.service.moving.bringing import bring, counted
    from tunesmith.service.moving.page import overview, write_overview

    if folder is None and not pull:
        raise RecipeError("it is not said what to bring in", where="DIR", expected="a folder with an export, or --pull")
    source = folder or out / "export"
    missing = _pull(source, as_json) if pull else []
    for text in missing:
        warn(text)
    moved = bring(source, out, base, lambda text: click.echo(text, err=True))
    page = write_overview(moved)
    for text in moved.problems:
        warn(text)
    if as_json:
        print_json({**overview(moved), "missing": missing, "page": str(page)})
        return
    for job in moved.jobs:
        cost = f"${job.cost.dollars:.2f} there" if job.cost.dollars is not None else job.cost.how
        recipe = f"{job.folder}/recipe.yaml" if job.recipe else "no recipe: " + "; ".join(job.notes)
        click.echo(f"{job.name}: {job.model}, {job.status}, {counted(job.rows, 'row')}; {cost}\n  {recipe}")
    for one in moved.evals:
        recipe = f"{one.folder}/recipe.yaml, {one.rows:,} rows" if one.recipe else "no recipe"
        click.echo(f"{one.name}: {counted(len(one.results), 'run')}; {recipe}")
    if moved.completions:
        click.echo(f"stored completions: {moved.completions:,} rows in completions/rows.jsonl")
    if moved.kept:
        click.echo(f"there already, not touched: {', '.join(moved.kept)}")
    click.echo(f"written: {page}")


def _pull(folder: Path, as_json: bool) -> list[str]:
    """Pull an export; what could not be had is returned."""
    from tunesmith.service.moving.asking import OPENAI, Asker
    from tunesmith.service.moving.bringing import counted
    from tunesmith.service.moving.pulling import pull

    key = os.environ.get(_KEY, "").strip()
    if not key:
        raise RecipeError("there is no key", where=f"${_KEY}", fix=f"export {_KEY}=… and run the same command again")
    known = {"OpenAI-Organization": os.environ.get(_ORGANIZATION), "OpenAI-Project": os.environ.get(_PROJECT)}
    asker = Asker(
        os.environ.get(_URL, "").strip() or OPENAI, key, {name: value for name, value in known.items() if value}
    )
    done = pull(asker, folder, lambda text: click.echo(text, err=True))
    parts = (done.jobs, "job"), (done.files, "file"), (done.evals, "eval"), (done.completions, "stored completion")
    told = ", ".join(counted(number, name) for number, name in parts)
    click.echo(f"pulled into {folder}: {told} ({done.kept:,} were there already)", err=as_json)
    return done.missing
