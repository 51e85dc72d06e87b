"""What goes to stdout and stderr: one JSON object or words, never both."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click

from tunesmith.errors import TunesmithError

CONTINUE = "the same command continues it"


class RunInterrupted(KeyboardInterrupt):
    """The user stopped a run; `path` is its folder, where one was made."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        super().__init__(str(path) if path else "interrupted")


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout; numbers that JSON has no word for become null."""
    from tunesmith.runs.events import event_json

    click.echo(json.dumps(event_json(value), ensure_ascii=False, indent=2, allow_nan=False))


def print_error(error: TunesmithError, exit_code: int, *, as_json: bool) -> None:
    """An error on stderr, or as the one JSON object on stdout."""
    if as_json:
        print_json(error_json(error, exit_code))
    else:
        click.echo(f"{click.style('error', fg='red', bold=True)}: {error}", err=True)


def error_json(error: TunesmithError, exit_code: int) -> dict[str, Any]:
    """An error under the key `error`, as every command tells it."""
    told = {"what": error.what, "where": error.where, "expected": error.expected, "fix": error.fix}
    return {"error": {**told, "exit_code": exit_code}}


def print_interrupted(path: Path | None, *, as_json: bool) -> None:
    """Say that a run was stopped and how it goes on."""
    if as_json:
        where = str(path) if path else None
        fix = CONTINUE if path else None
        print_json({"error": {"what": "interrupted", "where": where, "expected": None, "fix": fix, "exit_code": 130}})
    elif path is not None:
        click.echo(f"\ninterrupted; {CONTINUE}: {path}", err=True)
    else:
        click.echo("\ninterrupted", err=True)


def warn(text: str) -> None:
    """A warning on stderr."""
    click.echo(f"{click.style('warning', fg='yellow', bold=True)}: {text}", err=True)


@contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """With `--json`, whatever libraries print to stdout meanwhile goes to stderr."""
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
