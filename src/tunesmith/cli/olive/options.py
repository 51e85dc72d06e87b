"""Options that Olive's commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunesmith.cli.options import json_option, set_option
from tunesmith.cli.output import warn

if TYPE_CHECKING:
    from tunesmith.pipeline.olive.project import Project

Function = TypeVar("Function", bound=Callable[..., Any])

UNSEEN = {
    "disable_telemetry": "there is none",
    "account_name": "nothing is kept in a cloud's storage",
    "container_name": "nothing is kept in a cloud's storage",
    "tempdir": "intermediate files lie beside the output",
    "enable_telemetry": "there is none",
}
"""Flags of every Olive command that change nothing here, and why."""


def switch(*names: str, help: str) -> Callable[[Function], Function]:
    """A flag that may stand alone or before true or false, as teaching texts write it either way."""
    return click.option(*names, is_flag=False, flag_value="true", default=None, metavar="[true|false]", help=help)


def value(*names: str, help: str, metavar: str = "TEXT") -> Callable[[Function], Function]:
    """A flag with a value, which is checked together with all others."""
    return click.option(*names, default=None, metavar=metavar, help=help)


def hidden(names: Sequence[str]) -> Callable[[Function], Function]:
    """Flags that are taken and not listed in --help."""

    def add(function: Function) -> Function:
        for name in reversed(names):
            option = click.option(
                f"--{name}", name, is_flag=False, flag_value="true", default=None, hidden=True, metavar="VALUE"
            )
            function = option(function)
        return function

    return add


def common(function: Function) -> Function:
    """`--aliases`, `--save_config_file`, `--dry_run`, `--log_level`, `--set`, `--json`, and flags without effect."""
    for option in (
        json_option,
        set_option,
        hidden(tuple(UNSEEN)),
        value("--log_level", metavar="0-4", help="3 and 4 print no progress."),
        switch("--dry_run", help="Say what would be done, do nothing."),
        switch("--save_config_file", help="Print what the flags mean as a file, and keep it in the output folder."),
        value("--aliases", metavar="FILE", help="What hub ids stand for; default $TUNESMITH_ALIASES, aliases.yaml."),
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class Shared:
    """What `common` flags say: the alias file, whether to keep or only show what is meant, and to be quiet."""

    project: Project
    save: bool
    dry: bool
    quiet: bool


def shared(flags: dict[str, Any], command: str) -> Shared:
    """Take the `common` flags out of `flags`, and put those of the alias file for this command under the others.

    finetune puts them there itself, with those of its task. Raises `RecipeError` with everything wrong in them.
    """
    from tunesmith.pipeline.olive.draft import Draft
    from tunesmith.pipeline.olive.project import load_project
    from tunesmith.recipe.problems import nearest

    for name in UNSEEN:
        if flags.pop(name, None) is not None:
            warn(f"--{name} changes nothing: {UNSEEN[name]}")
    project = load_project(flags.pop("aliases", None))
    project.refuse_remote_code()
    draft = Draft()
    if command != "finetune":
        for name, default in project.flags.get(command, {}).items():
            if name not in flags and not (command == "run" and name == "config"):
                near = nearest(name, flags)
                fix = f"did you mean {near}?" if near else None
                draft.wrong(f"{project.file}: {command}.{name}", "there is no such flag", fix=fix)
                continue
            if not isinstance(default, str | int | float):
                draft.wrong(f"{project.file}: {command}.{name}", f"{default!r} is not allowed", expected="one value")
            elif flags.get(name) is None:
                flags[name] = str(default).lower() if isinstance(default, bool) else str(default)
    on = {}
    for name in ("save_config_file", "dry_run"):
        given = flags.pop(name, None)
        on[name] = given is not None and bool(draft.truth(f"--{name}", given))
    level = flags.pop("log_level", None)
    if level is not None:
        draft.choice("--log_level", str(level), dict.fromkeys("01234", ""))
    draft.raise_problems(command)
    return Shared(project, on["save_config_file"], on["dry_run"], level is not None and int(level) >= 3)


def is_on(flags: dict[str, Any], name: str) -> bool:
    """Take a switch out of `flags`: whether it was given, alone or with true. Raises `RecipeError` for other words."""
    from tunesmith.pipeline.olive.draft import Draft

    given, draft = flags.pop(name, None), Draft()
    on = given is not None and bool(draft.truth(f"--{name}", given))
    draft.raise_problems("command line")
    return on
