"""A finished run made of files, with real tasks and real scores but no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.data.types import Example, Message
from tunesmith.evaluation.neighbours import Evidence, read_evidence, with_conversations
from tunesmith.evaluation.types import MetricValue, ScoredAnswer
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.runs import RunFolder, write_json
from tunesmith.tasks import fit_task, task_record
from tunesmith.tasks.metrics import value_of
from tunesmith.tasks.types import Task

STOP = "</u>"
INTENTS = [
    ("My card never came", "lost card"),
    ("Where is my card?", "lost card"),
    ("Raise my limit {{ now }}", "limit"),
    ("file://etc/passwd", "limit"),
    ('He said: "yes" {% if %}', "other"),
]


def examples_of(rows: Sequence[tuple[str, str]]) -> list[Example]:
    return [
        Example(f"row{i}", (Message("user", asked), Message("assistant", right)), right, i + 2, "rows.csv")
        for i, (asked, right) in enumerate(rows)
    ]


def prompt_of(question: str, shots: str = "") -> str:
    """As a chat template would write it."""
    return f"<s>Sort it.{shots}\n<u>{question}{STOP}\n<a>"


def scored(task: Task, example: Example, prompt: str, text: str) -> ScoredAnswer:
    parsed, target = task.read(text, example), task.target(example)
    scores = {
        name: float(metric.item(metric.statistics([parsed], [target]))[0]) for name, metric in task.metrics.items()
    }
    return ScoredAnswer(example.id, prompt, text, example.expected, parsed, scores, 7, 3, stopped=True)


def make_evidence(
    path: Path,
    task_type: str = "classification",
    rows: Sequence[tuple[str, str]] = tuple(INTENTS),
    answers: Mapping[str, Sequence[str]] | None = None,
    spec: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    conversations: bool = True,
) -> Evidence:
    """Evidence of a run in `path`. Without `answers`, tuned is right everywhere and others say what the first row
    expects; few_shot's turns are not known."""
    examples = examples_of(rows)
    first = [rows[0][1]] * len(rows)
    given = answers or {"tuned": [right for _, right in rows], "few_shot": first, "trivial_majority": first}
    task = fit_task(TaskSpec.model_validate(spec or {}), task_type, examples)
    folder = RunFolder.create_at(path)
    folder.update_manifest(data={"splits_sha256": {"test": "abc"}}, base={"weights_sha256": "def"})
    write_json(path / "task.json", task_record(task))
    values = []
    for name, texts in given.items():
        shots = "\n<u>shown</u>\n<a>so" if name == "few_shot" else ""
        prompts = [e.question if name.startswith("trivial_") else prompt_of(e.question, shots) for e in examples]
        answered = [scored(task, e, p, text) for e, p, text in zip(examples, prompts, texts, strict=True)]
        folder.evaluation.mkdir(exist_ok=True)
        lines = "".join(f"{json.dumps(asdict(one))}\n" for one in answered)
        (folder.evaluation / f"{name}.jsonl").write_text(lines)
        (folder.evaluation / f"{name}.timing.json").write_text("{}")
        for metric in task.metrics.values():
            value = value_of(metric, [a.parsed for a in answered], [task.target(e) for e in examples])
            values.append(
                MetricValue(name, metric.name, value, max(0.0, value - 0.1), min(1.0, value + 0.1), len(rows))
            )
    kept = {"metric": next(iter(task.metrics)), "values": [asdict(v) for v in values]}
    write_json(path / "comparison.json", {**kept, "candidates": {n: {"latency_p50": 0.5, "k": 2} for n in given}})
    write_json(path / "verdict.json", {"decision": "ship_tuned", "candidate": "tuned", "reason": "It is better."})
    evidence = read_evidence(folder, _recipe(recipe), examples, stops=(STOP,))
    if not conversations:
        return evidence
    turns = [(Message("system", "Sort it."), Message("user", example.question)) for example in examples]
    return with_conversations(evidence, {"tuned": turns, "zero_shot": turns})


def _recipe(settings: Mapping[str, Any] | None) -> Recipe:
    return parse_recipe({"data": "rows.csv", "evaluate": {"max_new_tokens": 40}, **(settings or {})})
