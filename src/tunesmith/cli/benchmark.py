"""`tunesmith benchmark NAME --url URL --model MODEL`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from tunesmith.cli.options import FOLDER, json_option
from tunesmith.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.evaluation.neighbours.lm_eval_results import BenchmarkValue


@click.command("benchmark")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--url", required=True, metavar="URL", help="OpenAI-compatible endpoint, up to and with its /v1.")
@click.option("--model", required=True, help="Model to ask there.")
@click.option(
    "--dialect",
    type=click.Choice(["completions", "chat"]),
    default="completions",
    show_default=True,
    help="Send texts, as benchmarks that compare likelihoods need it, or turns.",
)
@click.option("--tokenizer", metavar="NAME", help="Hub id or folder of the model's tokenizer; likelihoods need it.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N rows of each benchmark.")
@click.option("--shots", type=click.IntRange(0), metavar="K", help="Examples in a prompt; default the benchmark's own.")
@click.option("--include", type=FOLDER, metavar="DIR", help="Folder with further tasks, as `evidence` writes them.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=4, show_default=True, help="Requests at a time.")
@click.option("--timeout", type=click.IntRange(1), default=300, show_default=True, help="Seconds for an answer.")
@click.option(
    "--key-env", metavar="NAME", help="Environment variable that holds the key, if the endpoint asks for one."
)
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder to write; default runs/benchmark-<time>.")
@json_option
def command(
    names: tuple[str, ...],
    url: str,
    model: str,
    dialect: str,
    tokenizer: str | None,
    limit: int | None,
    shots: int | None,
    include: Path | None,
    concurrency: int,
    timeout: int,
    key_env: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run public benchmarks against an endpoint, through lm-eval (the extra `eval`).

    NAME is a task of lm-eval, such as gsm8k or ifeval; `lm-eval ls tasks` lists them. Their data come from the hub.
    Scores are shown with intervals; every row is kept in DIR.
    """
    from tunesmith.evaluation.neighbours.lm_eval_benchmark import Asked, Served, run_benchmark

    folder = out if out is not None else Path("runs") / f"benchmark-{datetime.now():%Y%m%d-%H%M%S}"
    spoken = cast(Literal["completions", "chat"], dialect)
    served = Served(url, model, spoken, tokenizer, key_env, concurrency, timeout)
    values = run_benchmark(served, Asked(names, limit, shots, include), folder)
    if as_json:
        print_json({"url": url, "model": model, "out": str(folder), "values": [asdict(value) for value in values]})
        return
    _print(values)
    click.echo(f"written: {folder}")


def _print(values: Sequence[BenchmarkValue]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("benchmark", "metric", "value", "95 % CI", "by", "rows"):
        table.add_column(heading, justify="right" if heading in ("value", "rows") else "left")
    for one in values:
        metric = one.metric if one.filter == "none" else f"{one.metric} ({one.filter})"
        interval = f"{one.low:.4g} to {one.high:.4g}" if one.low is not None and one.high is not None else "not known"
        rows = f"{one.n:,}" if one.n is not None else ""
        value = f"{one.value:.4g}" if one.value is not None else "no number"
        cells = (one.task, metric, value, interval, one.interval or "", rows)
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)
