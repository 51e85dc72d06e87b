"""`tunesmith import`: one file per place that things come from."""

from __future__ import annotations

import click

from tunesmith.cli.group import LazyGroup

COMMANDS = {
    "openai": (
        "tunesmith.cli.imports.openai",
        "Jobs, rows and evals of an OpenAI account, exported or pulled with your key.",
    ),
    "promptfoo": ("tunesmith.cli.imports.promptfoo", "A config of promptfoo, as an evaluation."),
}


@click.group("import", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Bring in what you have elsewhere, as recipes, rows and evaluations."""
