"""What a written lm-eval task calls while lm-eval runs: rows, prompts, and the task's own metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.evaluation.neighbours.evidence import row_of
from tunesmith.evaluation.neighbours.lm_eval_files import TASK_FILE
from tunesmith.tasks import restore_task
from tunesmith.tasks.metrics import ItemMean


class RunTask:
    """The functions of a folder that `write_lm_eval` wrote."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._task = restore_task(json.loads((folder / TASK_FILE).read_text(encoding="utf-8")))

    def load(self, candidate: str, **_: Any) -> dict[str, Any]:
        """The test rows with one candidate's prompts; lm-eval gives its own settings too, which change nothing."""
        from datasets import Dataset  # lm-eval brings it

        path = self._folder / "rows" / f"{candidate}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return {"test": Dataset.from_list(rows)}

    @staticmethod
    def prompt(row: Mapping[str, str]) -> str:
        """The exact text the candidate was asked with."""
        return row["prompt"]

    @staticmethod
    def expected(row: Mapping[str, str]) -> str:
        """The expected answer."""
        return row["expected"]

    def scores(self, row: Mapping[str, str], answers: Sequence[str]) -> dict[str, Any]:
        """Every metric's part of one row: its score, or for a metric that is no mean the numbers it is summed from."""
        example = row_of(row["id"], row["question"], row["expected"])
        parsed, target = self._task.read(answers[0], example), self._task.target(example)
        found: dict[str, Any] = {}
        for name, metric in self._task.metrics.items():
            statistics = metric.statistics([parsed], [target])
            mean = isinstance(metric, ItemMean)
            found[name] = float(metric.item(statistics)[0]) if mean else statistics[0].tolist()
        return found

    def aggregation(self, name: str) -> Callable[[Sequence[Sequence[float]]], float]:
        """The function from all rows' numbers to a metric."""
        metric = self._task.metrics[name]

        def aggregate(rows: Sequence[Sequence[float]]) -> float:
            return float(metric.finish(np.asarray(rows, dtype=np.float64).sum(axis=0)))

        return aggregate
