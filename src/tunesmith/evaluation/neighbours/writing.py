"""The tools that evidence can be written for, by name."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import RecipeError
from tunesmith.evaluation.neighbours.evidence import Evidence
from tunesmith.inference.endpoint import Endpoint
from tunesmith.runs import staged_folder

Dialect = Literal["completions", "chat"]
"""How an endpoint is asked: with the exact text of a prompt, or with its turns."""

MARK = ".tunesmith-evidence"
"""The file by which a folder is known to be ours, so that it may be written again."""
_ROOM = "tunesmith.evaluation.neighbours"


@dataclass(frozen=True, slots=True)
class Options:
    """The endpoint that serves the tuned model, where a neighbour shall ask it: address up to /v1, and model."""

    url: str | None = None
    model: str | None = None
    dialect: Dialect = "completions"


@dataclass(frozen=True, slots=True)
class Use:
    """The command that uses what was written, `{folder}` being where it lies, and what could not be said there."""

    command: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What was written for a neighbour: where, which files, how to use them, and what could not be said there."""

    folder: Path
    files: tuple[str, ...]
    use: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A tool: the `module.function` of this room that writes for it, and what comes of it.

    `staged` is False where the tool writes down where its files lie, so that they cannot be moved into place; the
    writer then makes the folder. `asks` says whether it can be given an endpoint to ask.
    """

    writer: str
    title: str
    staged: bool = True
    asks: bool = False


TARGETS: Mapping[str, Target] = {
    "lm-eval": Target("lm_eval_files.write_lm_eval", "tasks, and results as lm-eval logs them"),
    "promptfoo": Target("promptfoo_files.write_promptfoo", "a config with prompts, providers and tests", asks=True),
    "inspect": Target("inspect_files.write_inspect", "samples, and a log of each candidate for `inspect view`"),
    "mlflow": Target("mlflow_records.write_mlflow", "a run with one of each candidate below it", staged=False),
}
"""What `--to` may be."""


def write_as(to: str, evidence: Evidence, folder: Path, options: Options) -> Written:
    """Write `evidence` for the tool `to` into `folder`. What is there is replaced where it is evidence too.

    Raises `RecipeError` for an unknown tool, half an endpoint or one that is not asked, and a folder that holds other
    things: anything but evidence for the same tool.
    """
    if to not in TARGETS:
        raise RecipeError(f"evidence is not written for {to!r}", where="--to", expected=", ".join(TARGETS))
    if options != Options():
        _refuse_endpoint(to, options)
    if folder.exists() and not _may_be_written(folder, to):
        raise RecipeError(
            "this folder holds other things", where=str(folder), expected="a new or empty folder", fix="--out DIR"
        )
    module, _, function = TARGETS[to].writer.partition(".")
    write: Callable[[Evidence, Path, Options], Use] = getattr(importlib.import_module(f"{_ROOM}.{module}"), function)
    if TARGETS[to].staged:
        with staged_folder(folder) as temporary:
            use = write(evidence, temporary, options)
            _mark(temporary, evidence, to)
    else:
        try:
            use = write(evidence, folder, options)
        finally:  # what was left half-way is ours too
            if folder.is_dir():
                _mark(folder, evidence, to)
    files = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MARK)
    return Written(folder, tuple(sorted(files)), use.command.replace("{folder}", shlex.quote(str(folder))), use.notes)


def _refuse_endpoint(to: str, options: Options) -> None:
    where = "--url, --model, --dialect"
    if not TARGETS[to].asks:
        asking = ", ".join(name for name, target in TARGETS.items() if target.asks)
        raise RecipeError(f"an endpoint has no place in evidence for {to}", where=where, expected=f"--to {asking}")
    if options.url is None or options.model is None:
        raise RecipeError("an endpoint is an address and a model", where=where, expected="both or neither")
    Endpoint(options.url, options.model, set_by="--url").check()


def _may_be_written(folder: Path, to: str) -> bool:
    """Whether a place that exists is an empty folder or evidence for the same tool."""
    if not folder.is_dir():
        return False
    mark = folder / MARK
    if mark.is_file():
        return mark.read_text(encoding="utf-8").endswith(f" for {to}\n")
    return not any(folder.iterdir())


def _mark(folder: Path, evidence: Evidence, to: str) -> None:
    (folder / MARK).write_text(f"evidence of {evidence.name} for {to}\n", encoding="utf-8")
