"""`tunesmith doctor BASE`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import RecipeCommand, recipe_options
from tunesmith.cli.output import only_json, print_json, warn
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table

    from tunesmith.recipe import Recipe
    from tunesmith.training.gate.doctor import Report
    from tunesmith.training.gate.types import Outcome


@click.command("doctor", cls=RecipeCommand, sections=("base", "data"))
@click.argument("base", default="embedded:base")
@click.option("--rows", type=click.Path(path_type=Path), metavar="FILE", help="Take a step on rows of this file too.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random rows and adapters.")
@recipe_options
def command(
    base: str, rows: Path | None, seed: int, overrides: tuple[str, ...], as_json: bool, trust_remote_code: bool
) -> int:
    """Prove on this machine that training computes the right loss and gradients, and say how fast it can be.

    BASE is a hub id, a local folder, or embedded:NAME. Every fast path is compared with plain PyTorch in float64, then
    a step of a cut of the base (first, middle and last layer, every kind of attention, the head) with plain
    transformers. Ends with 5 where one of them is wrong.
    """
    with only_json(as_json), _progress(as_json) as told:
        from tunesmith.training.gate.doctor import examine
        from tunesmith.training.gate.rows import read_samples

        recipe = _recipe(base, rows, [*overrides, *(["base.trust_remote_code=true"] if trust_remote_code else [])])
        if recipe.base.trust_remote_code:
            warn(f"code that comes with {base} will run on this machine")
        samples = read_samples(recipe.base, recipe.data) if rows is not None else ()
        report = examine(recipe.base, samples=samples, seed=seed, told=told)
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)
    return report.exit_code


def _recipe(base: str, rows: Path | None, overrides: Sequence[str]) -> Recipe:
    """The base, and how its rows are read, with the settings of the command line. Raises `RecipeError`."""
    from tunesmith.recipe import apply_overrides, parse_recipe

    given = {"base": {"model": base}, "data": {"train": str(rows) if rows is not None else "no rows"}}
    data = apply_overrides(given, overrides)
    others = [name for name in data if name not in given]
    if others:
        raise RecipeError(
            f"{', '.join(others)} cannot be set here", where="--set", expected="settings of base and data only"
        )
    return parse_recipe(data, "the command line")


def print_report(report: Report) -> None:
    """What was found, the result last."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for heading, table in (
        ("this machine", _facts(report)),
        ("fast paths", _fast_paths(report)),
        ("operations and small models", _groups(report.of_machine)),
        ("a cut of your base", _outcomes(report.of_base)),
    ):
        console.print(Text(heading, style="bold"))
        console.print(table)
        console.print()
    console.print(Text(f"looked at: {_cut(report)}"))
    for left_out in report.left_out:
        console.print(Text(f"not looked at: {left_out}", style="dim"))
    if report.failed:
        console.print(Text("\nthese do not hold:", style="bold red"))
        console.print(_outcomes(report.failed))
        console.print(Text("Training would not be right here. Please report this with `tunesmith doctor --json`."))
        return
    console.print(Text(f"all {len(report.outcomes)} checks hold, in {report.seconds:.0f} s", style="bold green"))


def _cut(report: Report) -> str:
    layers = ", ".join(map(str, report.layers))
    return (
        f"layers {layers} of {report.of_layers} of {report.base}, its embeddings and its head "
        f"({report.parameters:,} weights)"
    )


def _facts(report: Report) -> Table:
    table = _grid()
    for fact in report.machine:
        table.add_row(f"  {fact.name}", fact.value)
    table.add_row("  products", ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in report.rates.items()))
    return table


def _fast_paths(report: Report) -> Table:
    from rich.text import Text

    table = _grid()
    for path in report.fast_paths:
        mark = Text("yes", style="green") if path.used else Text("no", style="yellow")
        table.add_row(f"  {path.name}", mark, Text(path.detail))
    return table


def _groups(outcomes: Sequence[Outcome]) -> Table:
    """One line per device, kind of check and type: how many hold, and the one with the least room."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.device, outcome.group, outcome.dtype), []).append(outcome)
    table = _table("on", "what", "type", "hold", "largest error", "allowed", "where")
    for (device, group, dtype), members in groups.items():
        worst = max(members, key=lambda o: o.room_used)
        hold = f"{sum(o.holds for o in members)} of {len(members)}"
        table.add_row(device, group, dtype, hold, *_error(worst), f"{worst.check}: {worst.worst_tensor}")
    return table


def _outcomes(outcomes: Sequence[Outcome]) -> Table:
    table = _table("on", "check", "type", "tensors", "largest error", "allowed", "where")
    for o in outcomes:
        table.add_row(o.device, o.check, o.dtype, str(o.tensors), *_error(o), o.worst_tensor)
    return table


def _error(outcome: Outcome) -> tuple[str, str]:
    style = "green" if outcome.holds else "bold red"
    return f"[{style}]{outcome.error:.1e}[/]", f"{outcome.allowed:.0e}"


def _grid() -> Table:
    from rich.table import Table

    return Table.grid(padding=(0, 2))


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=True)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Outcome], None]]:
    """Names the check that was just done, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda outcome: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("comparing with float64 …") as status:
        yield lambda o: status.update(f"comparing with float64 … {o.group}: {o.check} ({o.dtype}, {o.device})")
