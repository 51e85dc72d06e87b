"""`tunesmith export RUN --auto`: its options, and the table of what was tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunesmith.cli.output import error_json, only_json, print_json
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.pipeline.exporting.auto import Auto
    from tunesmith.pipeline.exporting.choosing import Judged
    from tunesmith.runs import RunFolder

Function = TypeVar("Function", bound=Callable[..., Any])

_WIDTH = 118
_OPTIONS = (
    click.option(
        "--auto", is_flag=True, help="Try formats and precisions, measure them, keep the best of those allowed."
    ),
    click.option("--kinds", "try_kinds", metavar="KIND[,KIND]", help="Of --auto: what to try: onnx, gguf-q8_0, …"),
    click.option("--for", "best", metavar="SPEED|SIZE", help="Of --auto: what is best among those allowed."),
    click.option("--max-size", type=click.FloatRange(0, min_open=True), metavar="MB", help="Of --auto: with its base."),
    click.option(
        "--max-latency",
        type=click.FloatRange(0, min_open=True),
        metavar="MS",
        help="Of --auto: to a whole answer, the median of validation rows.",
    ),
    click.option(
        "--accept-unsure", is_flag=True, help="Of --auto: also what too few rows cannot show to lose no more."
    ),
    click.option("--keep-all", is_flag=True, help="Of --auto: keep every export that was tried."),
)


def auto_options(function: Function) -> Function:
    """The options of `--auto`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class AutoAsked:
    """What the options of `--auto` say."""

    auto: bool
    try_kinds: str | None
    best: str | None
    max_size: float | None
    max_latency: float | None
    accept_unsure: bool
    keep_all: bool

    def refuse_mixture(self, others: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for options that name a format beside `--auto`, and for options of it without it."""
        if self.auto:
            wrong = [name for name, value in others.items() if value is not None]
            if wrong:
                raise RecipeError(
                    f"{', '.join(wrong)} {'says' if len(wrong) == 1 else 'say'} what --auto is to find out",
                    where="export",
                    expected="--auto alone, with --kinds to say what it may try",
                )
            if self.best is not None and self.best.lower() not in ("speed", "size"):
                raise RecipeError(f"{self.best!r} is nothing to choose by", where="--for", expected="speed or size")
            return
        mine = {
            "--kinds": self.try_kinds, "--for": self.best, "--max-size": self.max_size,
            "--max-latency": self.max_latency, "--accept-unsure": self.accept_unsure or None,
            "--keep-all": self.keep_all or None,
        }  # fmt: skip
        given = [name for name, value in mine.items() if value is not None]
        if given:
            raise RecipeError(
                f"{', '.join(given)} {'goes' if len(given) == 1 else 'go'} with --auto only",
                where="export",
                fix="add --auto",
            )


def run_auto(
    folder: RunFolder, asked: AutoAsked, device: str | None, max_loss: float | None, out: Path | None, as_json: bool
) -> None:
    """Try, choose, print. Raises `VerificationError` where nothing is allowed or the test rows do not confirm it."""
    from tunesmith.cli.export import tell_line
    from tunesmith.pipeline.exporting.auto import export_auto
    from tunesmith.pipeline.exporting.bench import Wishes
    from tunesmith.pipeline.exporting.candidates import candidates

    names = tuple(name.strip() for name in (asked.try_kinds or "").split(",") if name.strip())
    targets = candidates(names, device or "cpu")
    wishes = Wishes(
        best="size" if (asked.best or "").lower() == "size" else "speed",
        max_loss=max_loss / 100 if max_loss is not None else None,
        max_bytes=int(asked.max_size * 1e6) if asked.max_size is not None else None,
        max_latency=asked.max_latency / 1000 if asked.max_latency is not None else None,
        accept_unsure=asked.accept_unsure,
    )
    with only_json(as_json):
        found = export_auto(folder, targets, wishes, out=out, keep_all=asked.keep_all, listener=tell_line)
    if as_json:
        problem = found.problem
        print_json({**found.to_dict(), **(error_json(problem, problem.exit_code) if problem is not None else {})})
        if problem is not None:
            raise click.exceptions.Exit(problem.exit_code)
        return
    _print(found)
    if found.problem is not None:
        raise found.problem
    click.echo(found.path)


def _print(found: Auto) -> None:
    """The table, those on the front marked, on stderr: the folder alone goes to stdout."""
    from rich.console import Console
    from rich.table import Table

    from tunesmith.verdict.wording import bare_points

    table = Table(box=None, pad_edge=False)
    for name in ("", "export"):
        table.add_column(name, no_wrap=True)
    for name in ("quality", "against tuned", "size", "tokens/s", "prompt/s", "first", "answer", "memory", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.judged:
        chosen = found.chosen is not None and one is found.chosen
        style = "green" if chosen else "" if one.allowed else "dim"
        table.add_row("●" if one.front else "", one.outcome.name, *_cells(one), style=style)
    console = Console(stderr=True)
    if console.width < _WIDTH:
        console = Console(stderr=True, width=_WIDTH)  # lines that the terminal breaks are easier read than columns
    console.print(table)
    for one in found.judged:
        said = found.notes[one.outcome.name].splitlines()[0]
        instead = f" (what works: {one.outcome.instead})" if one.outcome.instead else ""
        click.echo(f"{one.outcome.name}: {said}{instead}", err=True)
    click.echo(
        f"● no other is as good in quality, size and speed. Quality and loss are of {found.rows} validation rows; "
        f"a loss of {bare_points(found.limits.max_loss)} points is allowed ({found.limits.margin_of}).",
        err=True,
    )
    if found.confirmed is not None:
        task = next((check.text for check in found.confirmed.checks if check.name == "task"), "")
        click.echo(f"On the test rows, which only confirm it: {task}.", err=True)


def _cells(one: Judged) -> list[str]:
    """Figures of a line, dashes for what is not known."""
    from tunesmith.verdict import wording
    from tunesmith.verdict.report_exports import megabytes, or_dash

    line, latency = one.outcome.line, one.outcome.latency
    if line is None:
        return ["–"] * 9
    against = wording.points(line.difference) if line.difference is not None else "–"
    if line.difference_low is not None and line.difference_high is not None:
        against += f" [{100 * line.difference_low:+.1f}, {100 * line.difference_high:+.1f}]"

    return [
        or_dash(line.value, wording.percent),
        against,
        megabytes(line.total),
        or_dash(line.decode, lambda value: f"{value:,.0f}"),
        or_dash(line.prefill, lambda value: f"{value:,.0f}"),
        or_dash(line.first_token, wording.duration),
        or_dash(latency, wording.duration),
        or_dash(line.peak_memory, megabytes),
        or_dash(line.kl, lambda value: f"{value:.2g}"),
    ]
