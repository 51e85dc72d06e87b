"""`tunesmith verdict RUN`."""

from __future__ import annotations

from dataclasses import asdict

import click

from tunesmith.cli.options import json_option, run_from, set_option
from tunesmith.cli.output import only_json, print_json
from tunesmith.errors import RecipeError


@click.command("verdict")
@click.argument("run")
@set_option
@json_option
def command(run: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the comparison and the verdict of a run, and what people and judges preferred.

    What they said since the verdict was written is heard now: it is decided again from what the run has kept, without
    asking a model. RUN is a path, a run's name, or `last`. Runs in another folder: --set output.dir=DIR.
    """
    folder = run_from(run, overrides)
    from tunesmith import pipeline
    from tunesmith.cli.preferences import preference_line
    from tunesmith.cli.tables import print_result
    from tunesmith.evaluation.rating import read_preferences

    with only_json(as_json):
        result = pipeline.redecide(folder)
    if result.verdict is None:
        raise RecipeError(
            "this run has no verdict yet", where=str(folder.path), fix=f"tunesmith run RECIPE --out {folder.path}"
        )
    preferences = read_preferences(folder.evaluation)
    if as_json:
        said = {"preferences": [asdict(preference) for preference in preferences]} if preferences else {}
        print_json({**result.to_dict(), **said})
        return
    print_result(result)
    for preference in preferences:
        click.echo(preference_line(preference))
