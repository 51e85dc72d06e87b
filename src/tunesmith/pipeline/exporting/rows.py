"""The frozen rows of a run, read again to score an export on the very rows that the tuned model was scored on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.types import Example
from tunesmith.errors import TunesmithError
from tunesmith.pipeline.clusters import clusters_in
from tunesmith.pipeline.loading import TASK
from tunesmith.pipeline.prepare import read_data
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder
from tunesmith.tasks import restore_task
from tunesmith.tasks.conversation import training_conversation
from tunesmith.tasks.types import Task
from tunesmith.text.render import Renderer

CALIBRATION_ROWS = 128
"""Training rows at equal distances that quantisers see at most, as GPTQ's and AWQ's authors take."""


Part = Literal["test", "validation", "train"]


@dataclass(frozen=True, slots=True)
class FrozenRows:
    """Task and rows of a run; `clusters` as `clusters_in` has them.

    test: the rows that are answered: those of `part`, which are validation rows where something is chosen by them.
    """

    task: Task
    train: Sequence[Example]
    test: tuple[Example, ...]
    clusters: Mapping[str, str] | None
    part: Part = "test"


def frozen_rows(folder: RunFolder, recipe: Recipe, part: Part = "test") -> FrozenRows | str:
    """The rows of a run, or why they cannot be had. Rows that are others now are no test rows: that is a reason too."""
    path = folder.path / TASK
    if recipe.data.columns.second is not None:
        return "the model was tuned on pairs of texts and answers nothing"
    if not path.is_file():
        return "the run keeps no task: it was not recorded"
    try:
        rows = read_data(recipe, depth="quick")
    except TunesmithError as error:
        return f"the run's rows cannot be read: {error.what.splitlines()[0]}"
    known = folder.manifest().get("data", {}).get("splits_sha256")
    if known != dict(rows.splits.hashes):
        return "the run's data files hold other rows now than those it was tuned and measured on"
    answered = tuple(getattr(rows.splits, part))
    if not answered:
        return f"the run has no {part} rows"
    return FrozenRows(
        restore_task(json.loads(path.read_text(encoding="utf-8"))),
        rows.splits.train,
        answered,
        clusters_in(answered, recipe.data.split.group_by),
        part,
    )


def spread(count: int, at_most: int) -> range:
    """Places at equal distances among `count`, at most so many."""
    return range(0, count, max(1, -(-count // at_most)))


def calibration_ids(rows: FrozenRows, renderer: Renderer, recipe: Recipe) -> tuple[tuple[int, ...], ...]:
    """Token ids of training rows as they were learnt; rows longer than the training took are left out, never cut."""
    limit = int(recipe.train.max_length) if recipe.train.max_length != "auto" else None
    chosen = [rows.train[place] for place in spread(len(rows.train), CALIBRATION_ROWS)]
    conversations = [training_conversation(rows.task, example) for example in chosen]
    samples = renderer.samples(conversations, recipe.train.loss)
    return tuple(tuple(s.ids.tolist()) for s in samples if limit is None or len(s.ids) <= limit)
