"""`tunesmith data synthesize RECIPE`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import FOLDER, RECIPE_FILE, RecipeCommand, recipe_from, recipe_options
from tunesmith.cli.output import only_json, print_json, warn
from tunesmith.errors import RecipeError


@click.command("synthesize", cls=RecipeCommand, sections=("task", "data"))
@click.argument("recipe", type=RECIPE_FILE)
@click.option("--endpoint", required=True, metavar="URL", help="OpenAI-compatible endpoint, up to and with its /v1.")
@click.option("--model", required=True, help="Model to ask there.")
@click.option("--kind", type=click.Choice(["paraphrase", "teacher"]), default="paraphrase", show_default=True)
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder to write; default NAME-synthetic beside the recipe.")
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Ask about the first N training rows (or inputs).")
@click.option("--per-row", type=click.IntRange(1), default=2, show_default=True, help="Rewordings of each row.")
@click.option("--inputs", metavar="SOURCE", help="Inputs without answers, for the teacher.")
@click.option("--column", metavar="NAME", help="Column to reword, where the input has several.")
@click.option("--max-cost", type=click.FloatRange(0, min_open=True), metavar="MONEY", help="Ceiling of money.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Ceiling of tokens, in and out.")
@click.option("--price-in", type=click.FloatRange(0), default=0.0, help="Price of a million input tokens.")
@click.option("--price-out", type=click.FloatRange(0), default=0.0, help="Price of a million output tokens.")
@click.option("--answer-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True)
@click.option("--concurrency", type=click.IntRange(1), default=4, show_default=True, help="Requests at a time.")
@click.option("--key-env", default="OPENAI_API_KEY", show_default=True, help="Variable that holds the key, if any.")
@recipe_options
def command(
    recipe: Path,
    endpoint: str,
    model: str,
    kind: str,
    out: Path | None,
    rows: int | None,
    per_row: int,
    inputs: str | None,
    column: str | None,
    max_cost: float | None,
    max_tokens: int | None,
    price_in: float,
    price_out: float,
    answer_tokens: int,
    temperature: float,
    concurrency: int,
    key_env: str,
    overrides: tuple[str, ...],
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """Make rows with another model: rewordings of training inputs, or a teacher's answers.

    Sends training rows (or --inputs) to the endpoint, never validation or test rows, and nothing without a ceiling of
    tokens or money, which no request may exceed. What comes back is checked like any rows and written to DIR with its
    provenance, beside train, validation and test rows and a recipe to train from. Repeated, it asks only for what is
    missing.
    """
    if max_cost is None and max_tokens is None:
        raise RecipeError("there is no ceiling", where="--max-tokens, --max-cost", expected="at least one of them")
    asked = recipe_from(recipe, overrides, trust_remote_code)
    folder = out if out is not None else recipe.resolve().parent / f"{asked.name or recipe.stem}-synthetic"
    with only_json(as_json):
        from tunesmith.cli.display import open_display
        from tunesmith.inference.endpoint import Budget, Endpoint
        from tunesmith.pipeline.synthesis import Order, synthesize

        order = Order(
            kind="teacher" if kind == "teacher" else "paraphrase",
            rows=rows,
            per_row=per_row,
            max_tokens=answer_tokens,
            options={"temperature": temperature},
            inputs=inputs,
            column=column,
            concurrency=concurrency,
        )
        budget = Budget(max_tokens, max_cost, price_in, price_out)
        with open_display() as display:
            made = synthesize(asked, order, Endpoint(endpoint, model, os.environ.get(key_env)), budget, folder, display)
    if as_json:
        print_json(made.to_dict())
    else:
        _print(made.to_dict(), asked.verdict.prices.currency)


def _print(made: dict[str, Any], currency: str) -> None:
    click.echo(f"asked about {made['answered']:,} of {made['asked']:,} rows; {made['made']:,} rows made")
    for reason, count in made["left_out"].items():
        click.echo(f"  left out, {reason.replace('_', ' ')}: {count:,}")
    if made["agreeing"]:
        click.echo(f"  of the teacher's answers {made['agreeing']:,} are those of the rows")
    click.echo(f"spent: {made['tokens']:,} tokens, {made['money']:.4f} {currency}")
    if made["ended"]:
        warn(f"ended at the ceiling of {made['ended']}; a higher one goes on from here")
    for finding in made["findings"]:
        if finding["severity"] != "info":
            warn(f"{finding['code']}: {finding['message']}")
    click.echo(
        f"written: {made['out']}, {made['train_rows']:,} training rows\nnext: tunesmith check {made['out']}/recipe.yaml"
    )
