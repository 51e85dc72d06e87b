"""What `run`, `train`, `baselines` and `evaluate` have in common: one pipeline, stopped at different stages."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith.cli.options import recipe_from
from tunesmith.cli.output import RunInterrupted, only_json, print_json

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

_RESTARTS = 3
"""How often a training in several processes is started again when one of them is lost."""


def run_through(
    through: Literal["train", "baselines", "evaluate", "verdict"],
    path: Path,
    overrides: Sequence[str],
    *,
    out: Path | None,
    new: bool,
    as_json: bool,
    trust_remote_code: bool,
    train_anyway: bool = False,
) -> None:
    """Run a recipe up to a stage and show the result. Raises `RunInterrupted` on Ctrl-C.

    train_anyway: as for `pipeline.run`.
    """
    recipe = recipe_from(path, overrides, trust_remote_code)
    from tunesmith import pipeline
    from tunesmith.cli.display import open_display
    from tunesmith.cli.tables import print_result

    began = time.time()
    with only_json(as_json), open_display() as display:
        try:
            result = pipeline.run(
                recipe, out=out, new=new, through=through, train_anyway=train_anyway, listener=display
            )
        except KeyboardInterrupt:
            raise RunInterrupted(_interrupted_run(recipe, out, began)) from None
    if as_json:
        print_json(result.to_dict())
    else:
        print_result(result)


def in_processes(number: int) -> None:
    """With more than one process: start this command line in all of them, and end with their exit code."""
    if number == 1 or "RANK" in os.environ:
        return
    from tunesmith.training.launch import launch

    raise SystemExit(launch([sys.executable, "-m", "tunesmith.cli", *sys.argv[1:]], number, _RESTARTS))


def _interrupted_run(recipe: Recipe, out: Path | None, began: float) -> Path | None:
    """The folder of the run that was stopped: the unfinished one written last, since the command began."""
    from tunesmith.runs import is_run, list_runs

    if out is not None:
        return out.resolve() if is_run(out) else None
    written = {
        run.path: run.events_file.stat().st_mtime
        for run in list_runs(Path(recipe.output.dir))
        if run.events_file.exists() and run.summary().state != "finished" and not run.running
    }
    recent = {path: when for path, when in written.items() if when >= began - 1}
    return max(recent, key=lambda path: recent[path]) if recent else None
