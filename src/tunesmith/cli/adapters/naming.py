"""How adapters are named on a command line: a run, or a folder with `adapter_config.json`; with a name and a weight."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import run_from
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.export.source import FolderSource
    from tunesmith.runs import RunFolder

base_option = click.option(
    "--base", metavar="BASE", help="Base of adapters that are folders; default what their configuration names."
)
_NAME = re.compile(r"\w[\w-]*", re.ASCII)
"""What servers, and the peft library, take as the name of an adapter."""


@dataclass(frozen=True, slots=True)
class Named:
    """One adapter of a command line; `run` is None where it is a folder. `weight` is None where none is given."""

    name: str
    source: FolderSource
    run: RunFolder | None
    weight: float | None = None


def adapter_from(text: str, overrides: Sequence[str], base: str | None = None) -> Named:
    """The adapter that a run's path or name, `last`, or a folder means. Raises as `export.source` does."""
    from tunesmith.export.source import open_folders, open_source
    from tunesmith.models.adapter import CONFIG, read_adapter
    from tunesmith.models.artifact import MANIFEST, read_artifact
    from tunesmith.recipe import load_recipe

    folder = Path(text).expanduser()
    if not (folder / CONFIG).is_file():
        run = run_from(text, overrides)
        return Named(run.name, open_source(run, load_recipe(run.recipe_file)), run)
    exported = (folder / MANIFEST).is_file()
    told = read_artifact(folder).base if exported else read_adapter(folder)[0].get("base_model_name_or_path")
    if not (base or told):
        raise RecipeError(
            "the adapter does not say of which base it is", where=str(folder / CONFIG), fix="say it with --base"
        )
    template = folder / "chat_template.jinja"
    asked = str(template) if template.is_file() else "auto"
    source = open_folders(str(base or told), folder, asked, name=folder.resolve().name)
    return Named(source.name, source, None)


def adapters_from(texts: Sequence[str], overrides: Sequence[str], base: str | None = None) -> list[Named]:
    """Adapters given as `name=RUN` or `name=RUN:weight`. Raises one `RecipeError` for all that are not so."""
    wrong = [text for text in texts if not _NAME.fullmatch(_name(text)) or not text.partition("=")[2]]
    names = [_name(text) for text in texts]
    said = [f"{text!r} is not name=RUN" for text in wrong]
    said += [f"the name {name} is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
    if said:
        raise RecipeError("; ".join(said), where="adapters", expected="name=RUN, the name of letters, digits, _ and -")
    found = []
    for text in texts:
        path, weight = _weighted(text.partition("=")[2])
        one = adapter_from(path, overrides, base)
        found.append(Named(_name(text), one.source, one.run, weight))
    return found


def _name(text: str) -> str:
    return text.partition("=")[0]


def _weighted(text: str) -> tuple[str, float | None]:
    """A path and the weight behind its last colon, where that is a number and the whole is no path."""
    path, _, last = text.rpartition(":")
    if not path or Path(text).exists():
        return text, None
    try:
        return path, float(last)
    except ValueError:
        return text, None
