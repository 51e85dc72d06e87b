"""The command line: one file per command, no logic."""

from tunesmith.cli.main import main

__all__ = ["main"]
