"""Options that several commands share, and help that comes from the recipe's own fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunesmith.cli.output import warn
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.runs import RunFolder

Function = TypeVar("Function", bound=Callable[..., Any])

RECIPE_FILE = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=True)

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting for this command; repeatable."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout; progress on stderr."
)
out_option = click.option("--out", type=FOLDER, metavar="DIR", help="Folder of the run; default runs/<name>-<time>.")
new_option = click.option("--new", is_flag=True, help="Start again, even where a run of this recipe can be continued.")
trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run the code that comes with the base model. Dangerous; this run only."
)
nproc_option = click.option(
    "--nproc", type=click.IntRange(1), default=1, metavar="N", help="Train in N processes on this machine, one per GPU."
)
_TRUST = "base.trust_remote_code"


def recipe_options(function: Function) -> Function:
    """`--set`, `--json` and `--trust-remote-code`."""
    return set_option(json_option(trust_option(function)))


class RecipeCommand(click.Command):
    """A command whose `--help` ends with the settings of the recipe sections it uses."""

    def __init__(self, *, sections: Sequence[str], **more: Any) -> None:
        super().__init__(**more)
        self.sections = sections

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from tunesmith.recipe import settings

        with formatter.section("Settings of the recipe, for --set KEY=VALUE"):
            formatter.write_dl(
                [(s.key, f"{s.help} [{s.type}; default: {s.default}]") for s in settings(self.sections)], col_max=34
            )
        super().format_epilog(ctx, formatter)


def recipe_from(path: Path, overrides: Sequence[str], trust_remote_code: bool) -> Recipe:
    """The recipe of a command line. Code of a base model runs only where this command line says so."""
    from tunesmith.recipe import load_recipe

    said_here = trust_remote_code or any(override.split("=")[0].strip() == _TRUST for override in overrides)
    recipe = load_recipe(path, [*overrides, f"{_TRUST}=true"] if trust_remote_code else overrides)
    if recipe.base.trust_remote_code and not said_here:
        raise RecipeError(
            f"{_TRUST} is on in the file",
            where=str(path),
            expected="said on the command line, for each run",
            fix=f"add --trust-remote-code if you trust the code of {recipe.base.model}",
        )
    if recipe.base.trust_remote_code:
        warn(f"code that comes with {recipe.base.model} will run on this machine")
    return recipe


def runs_root(overrides: Sequence[str]) -> Path:
    """The folder with the runs: `--set output.dir=DIR` or the default. Raises `RecipeError` for other settings."""
    from tunesmith.recipe import apply_overrides, settings

    data = apply_overrides({}, overrides)
    directory = data.pop("output", {}).get("dir")
    if data:
        raise RecipeError(
            f"{', '.join(data)} cannot be set here: a run keeps its recipe",
            where="--set",
            expected="output.dir=DIR, the folder with the runs",
            fix="change the recipe and run it with `tunesmith run`",
        )
    return Path(directory or next(settings(["output"])).default)


def run_from(text: str, overrides: Sequence[str]) -> RunFolder:
    """The run a command line names: a path, a name, or `last`."""
    from tunesmith.runs import resolve_run

    return resolve_run(text, runs_root(overrides))
