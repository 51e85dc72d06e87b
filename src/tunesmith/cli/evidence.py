"""`tunesmith evidence RUN --to TOOL`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from tunesmith.cli.options import FOLDER, json_option, run_from, set_option
from tunesmith.cli.output import only_json, print_json, warn

TOOLS = ("lm-eval", "promptfoo", "inspect", "mlflow")
"""Those of `tunesmith.evaluation.neighbours.TARGETS`, which is too heavy to be imported for `--help`."""


@click.command("evidence")
@click.argument("run")
@click.option("--to", required=True, type=click.Choice(TOOLS), help="The tool that shall read it.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder to write; default RUN/evidence/TOOL.")
@click.option("--candidate", "candidates", multiple=True, metavar="NAME", help="Only this one; repeatable.")
@click.option("--url", metavar="URL", help="promptfoo: endpoint that serves the tuned model, up to and with its /v1.")
@click.option("--model", metavar="NAME", help="promptfoo: the model's name there.")
@click.option(
    "--dialect",
    type=click.Choice(["completions", "chat"]),
    default="completions",
    show_default=True,
    help="promptfoo: send the exact text of prompts, or their turns.",
)
@set_option
@json_option
def command(
    run: str,
    to: str,
    out: Path | None,
    candidates: tuple[str, ...],
    url: str | None,
    model: str | None,
    dialect: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write what a run measured for another tool: rows, exact prompts, answers, scores.

    lm-eval gets tasks to run and results as it logs them, promptfoo a config with tests, Inspect samples and logs to
    view, MLflow records. The run's test rows are read again and must be the same. RUN is a path, a run's name, or
    `last`.
    """
    folder = run_from(run, overrides)
    from tunesmith.evaluation.neighbours import Options
    from tunesmith.pipeline.neighbours import write_evidence

    options = Options(url, model, cast(Literal["completions", "chat"], dialect))
    with only_json(as_json):
        made = write_evidence(folder, to, out, candidates=candidates, options=options)
    if as_json:
        print_json(
            {
                "run": str(folder.path),
                "to": to,
                "folder": str(made.folder),
                "files": list(made.files),
                "use": made.use,
                "notes": list(made.notes),
            }
        )
        return
    for note in made.notes:
        warn(note)
    click.echo(f"written: {made.folder}, {len(made.files):,} files\nnext: {made.use}")
