"""`tunesmith data`: one file per sub-command."""

from __future__ import annotations

import click

from tunesmith.cli.group import LazyGroup

COMMANDS = {
    "preview": (
        "tunesmith.cli.data.preview",
        "Show what will be learnt, token by token, and the numbers of the training.",
    ),
    "convert": ("tunesmith.cli.data.convert", "Write rows in another format, losing nothing unsaid."),
    "formats": ("tunesmith.cli.data.formats", "List the formats of rows that are recognised."),
    "hosted": ("tunesmith.cli.data.hosted", "Say what OpenAI or Azure would refuse a file for, all at once."),
    "subsets": ("tunesmith.cli.data.subsets", "Freeze nested parts of the rows, and say what more rows would buy."),
    "synthesize": (
        "tunesmith.cli.data.synthesize",
        "Make rows with another model: rewordings, or a teacher's answers.",
    ),
}


@click.group("data", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Work with rows before anything is trained."""
