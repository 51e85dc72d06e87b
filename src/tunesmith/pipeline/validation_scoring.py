"""Scoring a model on validation rows while it is trained: the answers that choose the best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.types import Example
from tunesmith.pipeline.prepare import Prepared
from tunesmith.pipeline.stage import engine_of
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.metrics import quick_score
from tunesmith.training.diagnosis import answer_measures


class ValidationScore:
    """Generates answers to the same validation rows each time and scores them."""

    def __init__(self, prepared: Prepared, rows: Sequence[Example]) -> None:
        self._task, self._rows, self._engine = prepared.task, rows, engine_of(prepared)
        self._limit = int(prepared.recipe.evaluate.max_new_tokens)
        self._asked = [asking_conversation(prepared.task, row) for row in rows]
        room = self._engine.context - self._limit
        self._fitting = [i for i, turns in enumerate(self._asked) if self._engine.count_tokens(turns) <= room]
        self._measures: dict[str, float] = {}

    def __call__(self) -> Mapping[str, float]:
        texts, ended = [""] * len(self._rows), [False] * len(self._rows)
        asked = [self._asked[i] for i in self._fitting]
        for i, generation in zip(self._fitting, self._engine.generate(asked, self._limit), strict=True):
            texts[i], ended[i] = generation.text, generation.stopped
        parsed = [self._task.read(text, row) for text, row in zip(texts, self._rows, strict=True)]
        # Right answers read like given ones: a target may be of another form, such as several references.
        right = [self._task.read(self._task.reply(row.expected), row) for row in self._rows]
        self._measures = answer_measures(parsed, right, ended)
        return quick_score(self._task, texts, self._rows)

    def answers(self) -> Mapping[str, float]:
        """What the last answers tell beside their score."""
        return self._measures


def validation_score(prepared: Prepared) -> ValidationScore | None:
    """What scores validation rows during training; None where that is not wanted."""
    rows = prepared.rows.splits.validation[: prepared.recipe.train.eval_rows]
    return ValidationScore(prepared, rows) if rows else None
