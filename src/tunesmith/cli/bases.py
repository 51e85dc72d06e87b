"""`tunesmith bases RECIPE BASE...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, recipe_from, recipe_options
from tunesmith.cli.output import RunInterrupted, only_json, print_json

if TYPE_CHECKING:
    from tunesmith.pipeline.bases import BasesReport


@click.command("bases", cls=RecipeCommand, sections=("goal", "task", "data", "base", "method", "evaluate"))
@click.argument("recipe", type=RECIPE_FILE)
@click.argument("bases", nargs=-1, required=True)
@click.option("--rows", type=click.IntRange(2), default=100, show_default=True, help="Measure at most so many rows.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the comparison; default runs/<name>-bases."
)
@recipe_options
def command(
    recipe: Path,
    bases: tuple[str, ...],
    rows: int,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    trust_remote_code: bool,
) -> int:
    """Compare base models on the rows of a recipe, before any is tuned.

    BASES are hub ids, folders, or embedded:NAME. Each is measured on validation rows: how well it foresees inputs and
    answers (bits per byte), how well it answers without and with examples, what it needs to be tuned and to answer
    here, and whether its licence allows what `goal.use` says. A base that cannot be used is shown with the reason.
    Interrupted, the same command goes on. Ends with 6 where no base could be measured.
    """
    settings = recipe_from(recipe, overrides, trust_remote_code)
    from tunesmith.cli.display import open_display
    from tunesmith.errors import EngineError
    from tunesmith.pipeline.bases import bases_folder, compare_bases

    with only_json(as_json), open_display() as display:
        try:
            report = compare_bases(settings, bases, rows=rows, out=out, listener=display)
        except KeyboardInterrupt:
            raise RunInterrupted(bases_folder(settings, out)) from None
    if as_json:
        print_json(report.to_dict())
    else:
        print_bases(report)
    return 0 if any(entry.measured is not None for entry in report.entries) else EngineError.exit_code


def print_bases(report: BasesReport) -> None:
    """The order, then every figure with the bases side by side, then what could not be used."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tunesmith.pipeline.bases_page import COLUMNS, cells, in_order, place_of, short_name
    from tunesmith.verdict.wording import metric_name

    console = Console()
    entries = in_order(report)
    if entries:
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for entry in entries:
            table.add_column(Text(short_name(entry.base), "bold"), overflow="fold")
        table.add_row("place", *(Text(place_of(report, entry.base)) for entry in entries))
        made = [cells(entry) for entry in entries]
        for key, name in COLUMNS:
            words = f"{name} {metric_name(report.metric)}" if key in ("few_shot", "zero_shot") else name
            table.add_row(Text(words), *(Text(one[key]) for one in made))
        console.print(table)
    for base, reason in report.ranking.left_out.items():
        console.print(Text.assemble(("not ranked ", "yellow"), (base, "bold"), f": {reason}"), soft_wrap=True)
    for entry in report.entries:
        if entry.problem_fix:
            console.print(Text(f"  {entry.base}, to do: {entry.problem_fix}", "dim"), soft_wrap=True)
        if entry.licence.conditions and (entry.measured is not None or entry.files.known):
            console.print(
                Text(f"licence of {entry.base}: {entry.licence.name}. {entry.licence.conditions}", "dim"),
                soft_wrap=True,
            )
    console.print(Text(f"\n{report.ranking.conclusion}", "bold"), soft_wrap=True)
    console.print(Text(f"the order: {report.ranking.rule}", "dim"), soft_wrap=True)
    console.print(Text(f"page: {report.folder / 'bases.html'}"), soft_wrap=True)
