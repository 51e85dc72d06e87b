"""How strong the trivial baselines are: banking77 (intents) and tasteset (foods in recipes).

    python benchmarks/baselines.py [--data DIR]

A verdict is worth as much as what the tuned model was compared with, so the strength of the comparison is published.
Every baseline gets training and validation rows exactly as a tuned model does: training rows to learn from, validation
rows to choose on. Results go to benchmarks/results/baselines.json and benchmarks/baselines.md. DIR is
$TUNESMITH_TEST_DATA, else ../shared/data. About two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data import Splits, load_examples, make_splits
from tunesmith.evaluation import Evaluation, evaluate_candidate, trivial_baselines
from tunesmith.evaluation.statistics import bootstrap
from tunesmith.recipe.schema import Data
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import Task, fit_task

HERE = Path(__file__).resolve().parent
SETTINGS: Mapping[str, Any] = {"resamples": 10_000, "confidence": 0.95, "seed": 0}


@dataclass(frozen=True)
class Setting:
    """One data set as one experiment: the recipe's `data` section, its task, and what the table says about it."""

    name: str
    task_type: str
    data: Mapping[str, Any]
    about: str


def settings(root: Path) -> list[Setting]:
    """The published experiments; a test file that is given is used whole."""
    banking = {
        "train": str(root / "banking77" / "train.csv"),
        "test": str(root / "banking77" / "test.csv"),
        "columns": {"prompt": "text", "answer": "category"},
        "split": {"validation": 0.1},
    }
    tasteset = {
        "train": str(root / "tasteset" / "TASTEset.csv"),
        "columns": {"prompt": "ingredients", "answer": "ingredients_entities"},
        "span_types": ["FOOD"],
        "split": {"validation": 0.1, "test": 0.2},
    }
    return [
        Setting("banking77", "classification", banking, "77 intents, the published test file"),
        Setting(
            "banking77-2000", "classification", {**banking, "max_rows": 2000}, "the same with 2,000 rows to learn from"
        ),
        Setting("tasteset", "extraction", tasteset, "recipe → JSON list of its FOOD spans"),
    ]


def splits_of(setting: Setting) -> Splits:
    """The rows as a run of Tunesmith would divide them."""
    data = Data.model_validate(setting.data)
    rows = load_examples(data, Path(data.train), task_type=setting.task_type).examples
    test = load_examples(data, Path(data.test), task_type=setting.task_type).examples if data.test else None
    return make_splits(rows, None, test, data.split, task_type=setting.task_type, max_rows=data.max_rows)


def measure(setting: Setting) -> dict[str, Any]:
    """Every trivial baseline of one experiment, fitted and scored on its test rows."""
    splits = splits_of(setting)
    task = fit_task(TaskSpec.model_validate({}), setting.task_type, [*splits.train, *splits.validation, *splits.test])
    candidates = []
    with tempfile.TemporaryDirectory() as folder:
        for baseline in trivial_baselines(task):
            start = time.perf_counter()
            candidate = baseline.fit(splits.train, splits.validation)
            fit_seconds = time.perf_counter() - start
            evaluation = evaluate_candidate(candidate, task, splits.test, Path(folder), latency_rows=12, **SETTINGS)
            candidates.append(_record(evaluation, fit_seconds))
            print(f"{setting.name:16} {baseline.name:20} {candidates[-1]['metrics']}", flush=True)
    return {
        "name": setting.name,
        "about": setting.about,
        "rows": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        "split_hashes": dict(splits.hashes),
        "candidates": candidates,
        "bootstrap_seconds": _bootstrap_seconds(task),
    }


def _record(evaluation: Evaluation, fit_seconds: float) -> dict[str, Any]:
    return {
        "candidate": evaluation.candidate,
        "metrics": {
            value.metric: [round(number, 4) for number in (value.value, value.low, value.high)]
            for value in evaluation.metrics
        },
        "notes": dict(evaluation.notes),
        "fit_seconds": round(fit_seconds, 2),
        "latency_p50": round(evaluation.latency_p50, 6),
    }


def _bootstrap_seconds(task: Task) -> dict[str, float]:
    """Seconds for 10,000 resamples of 2,000 rows, best of three, for each metric that is bootstrapped.

    The statistics' values do not matter to the time, only their shape.
    """
    import numpy as np

    result = {}
    for name, metric in task.metrics.items():
        if metric.binary:
            continue
        width = metric.statistics([], []).shape[1]
        rows = np.random.default_rng(0).random((2000, width))
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            bootstrap([rows], metric.finish, resamples=10_000, seed=0)
            seconds.append(time.perf_counter() - start)
        result[name] = round(min(seconds), 2)
    return result


def table(results: Sequence[Mapping[str, Any]], machine: str) -> str:
    """The page: one table per experiment."""
    lines = [
        "# Strength of the trivial baselines",
        "",
        "Written by `python benchmarks/baselines.py`; do not edit. Training rows to learn from, validation rows to",
        "choose on, the test rows once. Intervals are 95 %: Wilson for shares of right answers, else bootstrap.",
        "",
    ]
    for result in results:
        rows = result["rows"]
        names = list(result["candidates"][0]["metrics"])
        lines += [
            f"## {result['name']}: {result['about']}",
            "",
            f"{rows['train']:,} training, {rows['validation']:,} validation, {rows['test']:,} test rows.",
            "",
            "| baseline | " + " | ".join(names) + " | fitted in | chosen |",
            "|---|" + "---|" * (len(names) + 2),
        ]
        for one in result["candidates"]:
            cells = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in one["metrics"].values()]
            lines.append(f"| `{one['candidate']}` | {' | '.join(cells)} | {one['fit_seconds']} s | {_chosen(one)} |")
        lines.append("")
    lines += ["## Time of the bootstrap", "", "10,000 resamples of 2,000 rows, best of three:", ""]
    for result in results:
        lines += [f"- {result['name']}, {name}: {s} s" for name, s in result["bootstrap_seconds"].items()]
    return "\n".join([*lines, "", f"Measured on: {machine}.", ""])


def _chosen(one: Mapping[str, Any]) -> str:
    notes = one["notes"]
    if "c" in notes:
        return f"C = {notes['c']:g}"
    if "min_precision" in notes:
        return f"entities right in at least {notes['min_precision']:.0%} of their training matches"
    return ""


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("TUNESMITH_TEST_DATA", HERE.parent.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(default))
    root = parser.parse_args().data
    if not root.is_dir():
        parser.error(f"no data sets at {root}; give --data or set TUNESMITH_TEST_DATA")
    results = [measure(setting) for setting in settings(root)]
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    machine = f"Python {platform.python_version()}, {platform.machine()}, {threads} thread(s)"
    (HERE / "results").mkdir(exist_ok=True)
    published = json.dumps({"machine": machine, "results": results}, indent=1, ensure_ascii=False)
    (HERE / "results" / "baselines.json").write_text(published + "\n", encoding="utf-8")
    (HERE / "baselines.md").write_text(table(results, machine), encoding="utf-8")


if __name__ == "__main__":
    main()
