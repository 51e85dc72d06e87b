"""`tunesmith data preview RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import RECIPE_FILE, RecipeCommand, recipe_from, recipe_options
from tunesmith.cli.output import only_json, print_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tunesmith.pipeline.numbers import DataNumbers
    from tunesmith.pipeline.preview import DataPreview, ShownRow
    from tunesmith.text.preview import TokenPreview

_MARKS = {"\n": "↵\n", "\t": "→\t", "\r": "␍"}


@click.command("preview", cls=RecipeCommand, sections=("task", "data", "base", "method", "train", "verdict"))
@click.argument("recipe", type=RECIPE_FILE)
@click.option("--rows", type=click.IntRange(0), default=3, show_default=True, metavar="N", help="Rows to show.")
@click.option("--row", "wanted", multiple=True, metavar="ID|LINE", help="Show this row instead; repeatable.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write it as a page too.")
@recipe_options
def command(
    recipe: Path,
    rows: int,
    wanted: tuple[str, ...],
    html: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """Show what will be learnt, token by token, and the numbers of the training.

    Learnt tokens are green (between ⟦ and ⟧ where there are no colours), special tokens boxed in ‹ ›, and a line shows
    where a row becomes too long. Needs no GPU, and trains nothing.
    """
    asked = recipe_from(recipe, overrides, trust_remote_code)
    with only_json(as_json):
        from tunesmith.pipeline.preview import preview_data

        made = preview_data(asked, rows=rows, wanted=wanted)
        if html is not None:
            from tunesmith.pipeline.preview_page import write_preview

            write_preview(html, made, asked.name or recipe.stem)
    if as_json:
        print_json(made.to_dict())
    else:
        _print(made)
        if html is not None:
            click.echo(f"written: {html}")


def _print(made: DataPreview) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from tunesmith.text.templates import origin_text

    console = Console()
    console.print(
        Text(f"chat template {made.template} ({origin_text(made.origin)}); loss {made.loss}; ")
        + Text(f"rows of at most {made.limit:,} tokens"),
    )
    for finding in made.findings:
        console.print(Text(f"{finding.severity}: {finding.message}; {finding.fix}", style="bold red"))
    for shown in made.rows:
        console.print()
        console.print(_heading(shown))
        console.print(Padding(token_text(shown.preview, colour=console.color_system is not None), (0, 0, 0, 2)))
    console.print()
    _print_numbers(console, made)


def _heading(shown: ShownRow) -> Text:
    from rich.text import Text

    row = shown.preview
    part = "" if shown.part == "train" else f" ({shown.part}: never learnt)"
    text = Text(f"{shown.source}, line {shown.line}{part}", style="bold")
    text.append(f"  {len(row.tokens):,} tokens, {row.supervised:,} learnt, row {row.example_id}", style="not bold dim")
    if shown.tools:
        text.append(f"\n{shown.tools}", style="not bold")
    if row.supervised and not row.ends_turn:
        text.append("\nno end of turn is learnt: the model may never stop", style="bold red")
    if row.cut is not None:
        text.append(
            f"\ntoo long by {len(row.tokens) - row.cut:,} tokens: the row is left out, {row.lost:,} supervised tokens "
            f"are lost (cut, it would lose {row.beyond:,} and its end)",
            style="bold red",
        )
    return text


def token_text(row: TokenPreview, *, colour: bool) -> Text:
    """A row token by token. Without colours learnt runs stand between ⟦ and ⟧, and weights below 1 behind them."""
    from rich.text import Text

    text = Text()
    before = 0.0
    for place, ((token, weight), special) in enumerate(zip(row.tokens, row.special, strict=True)):
        if not colour and weight != before:
            text.append(_closing(before) + ("⟦" if weight else ""))
        before = weight
        if place == row.cut:
            text.append(f"\n──── {row.cut:,} tokens fit; what follows does not ────\n", "bold red")
        shown = "".join(_MARKS.get(character, character) for character in token)
        text.append(f"‹{shown}›" if special else shown, _style(weight, special, place))
    if not colour:
        text.append(_closing(before))
    return text


def _closing(weight: float) -> str:
    if not weight:
        return ""
    return "⟧" if weight == 1 else f"⟧×{weight:g}"


def _style(weight: float, special: bool, place: int) -> str:
    if not weight:
        return "cyan dim" if special else "dim"
    shade = ("green", "bright_green") if abs(weight) >= 1 else ("yellow", "bright_yellow")
    return f"{'bold ' if special else ''}black on {shade[place % 2]}"


def _print_numbers(console: Console, made: DataPreview) -> None:
    from rich.padding import Padding
    from rich.text import Text

    numbers, tokens = made.numbers, made.numbers.tokens
    some = "" if made.looked_at == made.train_rows else f" (from {made.looked_at:,} of {made.train_rows:,} rows)"
    console.print(Text(f"numbers{some}", style="bold"))
    lines = [
        f"{tokens.rows:,} rows, {tokens.tokens:,} tokens, {tokens.supervised_share:.1%} of them learnt",
        f"{numbers.epochs:.3g} epochs, {numbers.steps:,} steps, {numbers.trained_tokens:,} training tokens",
        f"a padding trainer would waste {tokens.padding.shuffled:.1%} at {tokens.padding.batch_size} rows at once "
        f"({tokens.padding.grouped:.1%} with rows of like length together)",
        f"tokens per row: shortest {tokens.shortest:,}, median {tokens.median:,}, 95 % at most {tokens.p95:,}, "
        f"longest {tokens.longest:,}",
    ]
    if tokens.too_long:
        lines.append(f"{tokens.too_long:,} rows are too long: {tokens.lost:,} supervised tokens are lost")
    console.print(Padding(Text("\n".join(lines)), (0, 0, 0, 2)))
    console.print(Padding(_bars(made), (0, 0, 1, 2)))
    console.print(cost_table(numbers))
    for name, formula in numbers.formulas.items():
        console.print(Text(f"  {name} = {formula}", style="dim"))
    for source in numbers.sources:
        console.print(Text(f"  {source}", style="dim"))


def _bars(made: DataPreview, width: int = 40) -> Text:
    """Rows by length as bars."""
    from rich.text import Text

    bins = made.numbers.tokens.histogram
    most = max((one.rows for one in bins), default=1)
    digits = len(str(bins[-1].high)) if bins else 1
    bars = ["█" * max(1, round(one.rows / most * width)) if one.rows else "" for one in bins]
    return Text(
        "\n".join(
            f"{one.low:>{digits}}-{one.high:<{digits}} {bar} {one.rows:,}" for one, bar in zip(bins, bars, strict=True)
        )
    )


def cost_table(numbers: DataNumbers) -> Table:
    """Time, memory and money of the training, here and elsewhere."""
    from rich.table import Table
    from rich.text import Text

    from tunesmith.pipeline.preview_page import cost_cells

    table = Table(box=None, pad_edge=False)
    for heading in ("where", "time", "memory", "price", "electricity", "how known"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "where")
    for cost in numbers.costs:
        cells = cost_cells(cost, numbers.currency)
        table.add_row(*(Text(cells[key]) for key in ("place", "time", "memory", "money", "electricity", "how")))
    return table
