"""How many training rows a task should have: by a learning curve of the same rows where there is one, else by thumb.

The thumb's rule is meant for adapters on a small or middle-sized base: a form of answer is learnt from some hundred
rows, a label from some dozens, and what takes reasoning from more. It knows nothing of the rows: a learning curve
(`data.learning_curve: true`) does, and replaces it once a run has made one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.pipeline.learning_curve import CURVE
from tunesmith.pipeline.prepare import Rows
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import list_runs

PER_LABEL, LEAST_LABELLED = 30, 200
_BY_THUMB: Mapping[str, int] = {
    "regression": 300,
    "extraction": 300,
    "token_classification": 300,
    "summarisation": 500,
    "translation": 1_000,
    "question_answering": 500,
    "maths": 1_000,
    "text_to_sql": 1_000,
    "tool_calls": 500,
    "code": 1_000,
    "generation": 500,
}
_LABELLED = ("classification", "multi_label", "ordinal")


@dataclass(frozen=True, slots=True)
class RowsWanted:
    """Training rows that a task should have, and how that is known, in a sentence."""

    rows: int
    how: str
    curve: Path | None = None


def rows_wanted(recipe: Recipe, rows: Rows, labels: int) -> RowsWanted:
    """What a learning curve of these training rows says, where a run has one; else the rule of thumb.

    labels: of the task; 0 where it has none.
    """
    have = len(rows.splits.train)
    known = _curve(recipe, rows)
    if known is not None:
        path, found = known
        name = path.parent.parent.name
        if found["answer"] == "more_data_does_not_help":
            return RowsWanted(have, f"the learning curve of {name}: more rows of this kind should not help", path)
        if found["answer"] == "more_data_helps":
            twice = int(found["predictions"][0]["rows"])
            gain = 100 * found["predictions"][0]["gain"]
            return RowsWanted(twice, f"the learning curve of {name}: {twice:,} rows bring {gain:+.1f} points", path)
    if rows.task_type in _LABELLED and labels:
        wanted = max(LEAST_LABELLED, PER_LABEL * labels)
        return RowsWanted(
            wanted, f"rule of thumb: {PER_LABEL} for each of {labels:,} labels, at least {LEAST_LABELLED}"
        )
    wanted = _BY_THUMB.get(rows.task_type, LEAST_LABELLED)
    return RowsWanted(wanted, f"rule of thumb for {rows.task_type.replace('_', ' ')}")


def _curve(recipe: Recipe, rows: Rows) -> tuple[Path, Mapping[str, Any]] | None:
    """The extrapolation of the newest learning curve of the same training file that could tell something."""
    for run in list_runs(Path(recipe.output.dir)):
        path = run.path / "learning_curve" / CURVE
        if not path.is_file():
            continue
        known = run.manifest().get("data", {})
        if known.get("files_sha256", {}).get("train") != rows.sources["train"]:
            continue
        if known.get("rows", {}).get("train") != len(rows.splits.train):
            continue
        found = json.loads(path.read_text()).get("extrapolation")
        if found is not None and found["answer"] != "cannot_tell":
            return path, found
    return None
