"""`tunesmith rate RUN`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import json_option, run_from, set_option
from tunesmith.cli.output import print_json, warn
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.evaluation.rating import Agreement, RatingSummary, Settings
    from tunesmith.runs import RunFolder


@click.command("rate")
@click.argument("run")
@click.option("--candidates", nargs=2, metavar="A B", help="Default: tuned and the best alternative.")
@click.option("--summary", is_flag=True, help="Show what the ratings say; `verdict` shows it too.")
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Rate at most N pairs.")
@click.option("--overlap", type=click.IntRange(0), metavar="N", help="Pairs that everybody rates; default 30.")
@click.option("--seed", type=int, help="Of the order of pairs and of their sides; default 0.")
@click.option("--rater", default="", metavar="NAME", help="Name that stands on the page at first.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the page; default a free one.")
@set_option
@json_option
def command(
    run: str,
    candidates: tuple[str, str] | None,
    summary: bool,
    rows: int | None,
    overlap: int | None,
    seed: int | None,
    rater: str,
    port: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Let people compare two candidates' answers blindly, on a page of this machine.

    Prints the page's address and serves it until Ctrl-C. Every rating is on the disk before the next pair is shown;
    the same command goes on later, with the same settings unless others are given. RUN is a path, a run's name, or
    `last`.
    """
    folder = run_from(run, overrides)
    from tunesmith.evaluation.rating import Settings, choose_candidates, ratings_path, read_ratings, write_summary

    a, b = choose_candidates(folder, candidates or ())
    if summary:
        found = write_summary(folder, a, b)
        if as_json:
            print_json({"run": str(folder.path), **found.to_dict()})
        else:
            _print(found)
        return
    settings = read_ratings(ratings_path(folder)).settings or Settings()
    given = {"rows": rows, "overlap": overlap, "seed": seed}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    _serve(folder, a, b, settings, rater, port, as_json)


def _serve(folder: RunFolder, a: str, b: str, settings: Settings, rater: str, port: int, as_json: bool) -> None:
    from tunesmith.evaluation.rating import make_plan, pairs_of, rating_log, ratings_path, read_ratings
    from tunesmith.service.rating import RatingServer, RatingSession

    plan = make_plan(pairs_of(folder, a, b), settings)
    if not plan.pairs:
        raise RecipeError(
            f"{a} and {b} give the same answer to every row", where=str(folder.path), fix="choose other --candidates"
        )
    with rating_log(folder) as log:
        known = read_ratings(ratings_path(folder))
        if known.settings != settings:
            log.begin(settings)
        session = RatingSession(plan, known, log)
        server = RatingServer(session, title=folder.name, port=port, rater=rater)
        before = session.given
        try:
            if as_json:
                print_json({"run": str(folder.path), "url": server.url, "pairs": len(plan.pairs)})
            else:
                click.echo(f"{len(plan.pairs):,} pairs to rate, {before:,} ratings so far\n{server.url}")
                click.echo("Ctrl-C ends it; every rating is kept", err=True)
            server.serve()
        except KeyboardInterrupt:
            click.echo(
                f"\n{session.given - before:,} new ratings; what they say: tunesmith rate {folder.name} --summary",
                err=True,
            )
        finally:
            server.free()


def _print(found: RatingSummary) -> None:
    from tunesmith.cli.preferences import preference_line
    from tunesmith.evaluation.rating import preference_from

    click.echo(
        f"{found.rated:,} of {found.pairs - found.identical:,} pairs rated; {found.identical:,} others are equal"
    )
    for name, count in found.raters.items():
        click.echo(f"  {name}: {count:,}")
    if found.rated:
        click.echo("choices: " + ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in found.choices.items()))
    for agreement in (found.agreement, found.everybody):
        if agreement is not None:
            click.echo(_agreement(agreement))
    if found.left is not None:
        chosen, of, low, high = found.left
        click.echo(f"the left answer was chosen in {chosen:,} of {of:,} choices for one of the two")
        if not low <= 0.5 <= high:
            warn("people chose by place: the left answer was preferred too often or too rarely for chance")
    if found.stale:
        warn(f"{found.stale:,} ratings are of answers that have changed since, and are not counted")
    click.echo(preference_line(preference_from("people", found.to_dict())))


def _agreement(one: Agreement) -> str:
    level = f"{100 * one.confidence:g} % CI"
    if one.value is None or one.low is None or one.high is None:
        return f"{one.name}: cannot be told, all ratings are the same ({one.n:,} pairs, {one.raters} raters)"
    return (
        f"{one.name}: {one.value:.2f} ({level} {one.low:.2f} to {one.high:.2f}; {one.n:,} pairs, {one.raters} raters)"
    )
