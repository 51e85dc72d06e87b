"""`tunesmith judge RUN`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import json_option, run_from, set_option
from tunesmith.cli.output import only_json, print_json, warn
from tunesmith.errors import RecipeError, VerificationError

if TYPE_CHECKING:
    from tunesmith.evaluation.rating import Outcome, Pair
    from tunesmith.runs import RunFolder

_FILE = click.Path(path_type=Path)


@click.command("judge")
@click.argument("run")
@click.option("--candidates", nargs=2, metavar="A B", help="Default: tuned and the best alternative.")
@click.option("--endpoint", metavar="URL", help="OpenAI-compatible endpoint of the judge, up to and with its /v1.")
@click.option("--model", help="Model to ask there.")
@click.option("--local", metavar="MODEL", help="A model of this machine instead: a folder, a hub id, embedded:base.")
@click.option("--mode", type=click.Choice(["pairwise", "rubric"]), help="Default: rubric where one is given.")
@click.option("--rubric", type=_FILE, metavar="FILE", help="Criteria and scales, as YAML; may guide pairwise too.")
@click.option("--labels", type=_FILE, metavar="FILE", help="Human labels; default: those of `tunesmith rate`.")
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Judge at most N pairs.")
@click.option("--min-kappa", type=click.FloatRange(0, 1), default=0.0, help="Least agreement, beside beating chance.")
@click.option("--unproven", is_flag=True, help="Judge without human labels; the result does not count.")
@click.option("--again", is_flag=True, help="Forget earlier replies, and what they cost.")
@click.option("--max-cost", type=click.FloatRange(0, min_open=True), metavar="MONEY", help="Ceiling of money.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Ceiling of tokens, in and out.")
@click.option("--price-in", type=click.FloatRange(0), default=0.0, help="Price of a million input tokens.")
@click.option("--price-out", type=click.FloatRange(0), default=0.0, help="Price of a million output tokens.")
@click.option("--answer-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest reply.")
@click.option("--temperature", type=click.FloatRange(0), help="Default 0; give 1 for models that know no other.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=120.0, show_default=True, help="Seconds.")
@click.option("--concurrency", type=click.IntRange(1), default=4, show_default=True, help="Requests at a time.")
@click.option("--key-env", default="OPENAI_API_KEY", show_default=True, help="Variable that holds the key, if any.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of pairs.")
@set_option
@json_option
def command(run: str, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Let a model judge two candidates' answers, after measuring it against people.

    Each pair is asked in both orders; where they disagree it is a tie. Pairs with a human label are asked first, and a
    judge that agrees with people no better than chance is asked nothing else. Writes RUN/evaluation/judge.json.
    Repeated, it asks only for what is missing. RUN is a path, a run's name, or `last`.
    """
    if (options["local"] is None) == (options["endpoint"] is None):
        raise RecipeError("who shall judge?", where="tunesmith judge", expected="--endpoint URL or --local MODEL")
    if options["endpoint"] is not None and not options["model"]:
        raise RecipeError("which model shall judge?", where="--endpoint", expected="--model NAME")
    folder = run_from(run, overrides)
    with only_json(as_json):
        result = _judge(folder, options)
    refused = bool(result["agreement"]) and not result["counts"]
    if as_json:
        print_json({"run": str(folder.path), **result})
        if refused:
            raise click.exceptions.Exit(VerificationError.exit_code)
        return
    _print(result)
    if refused:
        raise VerificationError(
            "the judge does not count",
            where=str(folder.path),
            expected="a judge that agrees with people, on all pairs",
            fix=f"{result['why']}; try another judge or rubric, or let people decide with `tunesmith rate`",
        )


def _judge(folder: RunFolder, options: dict[str, Any]) -> dict[str, Any]:
    from tunesmith.cli.display import open_display
    from tunesmith.evaluation.judges import load_rubric
    from tunesmith.evaluation.rating import choose_candidates, pairs_of
    from tunesmith.pipeline.judging import JudgeOrder, judge_run, local_judge

    a, b = choose_candidates(folder, options["candidates"] or ())
    pairs = pairs_of(folder, a, b)
    rubric = load_rubric(options["rubric"]) if options["rubric"] else None
    order = JudgeOrder(
        a=a,
        b=b,
        pairs=pairs,
        labels=_labels(folder, pairs, a, b, options["labels"]),
        mode=options["mode"] or ("rubric" if rubric else "pairwise"),
        rubric=rubric,
        rows=options["rows"],
        unproven=options["unproven"],
        least_kappa=options["min_kappa"],
        seed=options["seed"],
        again=options["again"],
    )
    if options["local"]:
        judge: Any = local_judge(options["local"], options["answer_tokens"])
    else:
        judge = _endpoint_judge(options)
    with open_display() as display:
        return judge_run(folder, order, judge, display)


def _endpoint_judge(options: dict[str, Any]) -> Any:
    from tunesmith.inference.endpoint import Budget, Endpoint
    from tunesmith.pipeline.judge_replies import EndpointJudge

    return EndpointJudge(
        Endpoint(options["endpoint"], options["model"], os.environ.get(options["key_env"]), timeout=options["timeout"]),
        Budget(options["max_tokens"], options["max_cost"], options["price_in"], options["price_out"]),
        max_tokens=options["answer_tokens"],
        options={"temperature": options["temperature"] if options["temperature"] is not None else 0.0},
        concurrency=options["concurrency"],
    )


def _labels(folder: RunFolder, pairs: tuple[Pair, ...], a: str, b: str, file: Path | None) -> dict[str, Outcome]:
    from tunesmith.evaluation.judges import read_labels
    from tunesmith.evaluation.rating import human_labels, ratings_path, read_ratings

    if file is not None:
        return read_labels(file, pairs, a, b)
    return human_labels(pairs, read_ratings(ratings_path(folder)), a, b)


def _print(result: dict[str, Any]) -> None:
    from tunesmith.cli.preferences import preference_line
    from tunesmith.evaluation.rating import preference_from

    pairs, replies = result["pairs"], result["replies"]
    if result["agreement"]:
        click.echo(f"against people: {result['why']}")
    else:
        warn(f"this does not count: {result['why']}")
    click.echo(f"pairs: {pairs['judged']:,} judged, {pairs['identical']:,} with the same answer twice")
    for reason, count in pairs["unjudged"].items():
        warn(f"without an outcome, {reason.replace('_', ' ')}: {count:,}")
    for reason, count in replies["failed"].items():
        example = f", such as: {told}" if (told := replies["examples"].get(reason)) else ""
        click.echo(f"  replies, {reason.replace('_', ' ')}: {count:,}{example}")
    for reason, count in replies["retried"].items():
        click.echo(f"  attempts repeated, {reason}: {count:,}")
    if len(models := result["judge"]["answered_by"]) > 1:
        warn(f"answered by several models: {', '.join(f'{name} ({count})' for name, count in models.items())}")
    if orders := result["orders"]:
        first = orders["first_chosen"]
        click.echo(
            f"both orders agree in {orders['same_in_both_orders']:,} of {orders['of']:,} pairs; the answer shown first "
            f"was chosen in {first['chosen']:,} of {first['of']:,} replies"
        )
    if result["ended"]:
        warn(f"ended early: {result['ended']}; the same command goes on from here")
    click.echo(f"spent: {result['spent']['tokens']:,} tokens, {result['spent']['money']:.4f} of money")
    click.echo(preference_line(preference_from("judge", result)))
