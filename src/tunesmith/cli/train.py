"""`tunesmith train RECIPE`."""

from __future__ import annotations

from tunesmith.cli.run import command_through

command = command_through(
    "train",
    "train",
    ("goal", "task", "data", "base", "method", "train", "output"),
    """Train only: no baseline is run.

    A run that was stopped is continued where it stopped.
    """,
)
