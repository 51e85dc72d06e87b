"""One case of `diagnosis.py` carried out through the package's own stages, diagnosed, and judged."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _diagnosis_cases import BASE, Case, Parts, all_cases
from tunesmith.data.types import Example
from tunesmith.models.forward import LanguageModel
from tunesmith.pipeline.prepare import Prepared, prepare, read_data
from tunesmith.pipeline.stage import data_key, engine_of
from tunesmith.pipeline.training import carry_out, training_job, training_plan
from tunesmith.pipeline.validation_scoring import ValidationScore
from tunesmith.recipe import load_recipe
from tunesmith.recipe.resolve import usual_learning_rate
from tunesmith.runs import RunFolder
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.metrics import quick_score
from tunesmith.text.types import Sample
from tunesmith.training.diagnosis import Diagnosis, NotFinite, TrainingFacts, Watcher
from tunesmith.training.diagnosis.gather import gather_facts
from tunesmith.training.diagnosis.probe import Probe
from tunesmith.training.diagnosis.types import Separation
from tunesmith.training.step import DivergenceError


@dataclass(frozen=True)
class Outcome:
    """What one training gave: events, facts, diagnoses at the end, the first validation each code was told at.

    scores: of the test rows, by the weights that are kept. weights: SHA-256 of the base.
    """

    history: list[dict[str, Any]]
    facts: TrainingFacts
    diagnoses: tuple[Diagnosis, ...]
    told_at: Mapping[str, int]
    scores: dict[str, float]
    weights: str
    seconds: float


def work(seed: int, few: bool, name: str, folder: Path) -> dict[str, Any]:
    """The record of the case of this name, made in a folder: what a process of its own is asked to do."""
    case = next(case for case in all_cases(seed, few) if case.name == name)
    return judge(case, folder, remedied=not few)


def judge(case: Case, folder: Path, remedied: bool = True) -> dict[str, Any]:
    """Run a case, and its remedy where it has one (and it is wanted); everything a reader wants to check.

    `right`: a spoiled run has its diagnosis and no other, at any validation and at the end, and after the remedy the
    metric of the test rows is better. A healthy run has none. `codes_after`: what the remedied run is told at its end.
    """
    began = time.monotonic()
    first = run_case(case, folder / "as it was")
    codes = [d.code for d in first.diagnoses]
    record: dict[str, Any] = {
        "name": case.name,
        "expected": case.expected,
        "codes": codes,
        "told_at": dict(first.told_at),
        "diagnoses": [d.record() for d in first.diagnoses],
        "metric": case.metric,
        "scores": first.scores,
        "seconds": first.seconds,
        "base": {"name": BASE, "weights_sha256": first.weights},
        "facts": asdict(first.facts),
        "history": [_short(event) for event in first.history if event["kind"] in ("train_step", "validation")],
    }
    if case.expected is None:
        record["right"] = not codes and not first.told_at
    else:
        record["right"] = codes == [case.expected] and set(first.told_at) == {case.expected}
    if case.expected is not None and codes and remedied:
        remedy = first.diagnoses[0].overrides
        second = run_case(case, folder / "remedied", remedy, mended=True)
        record |= {
            "remedy": list(remedy),
            "rows_mended": case.mended is not None or case.spoil is not None,
            "scores_after": second.scores,
            "codes_after": [d.code for d in second.diagnoses],
            "seconds_after": second.seconds,
        }
        better = second.scores[case.metric] > first.scores[case.metric]
        record["right"] = record["right"] and better
    record["wall_seconds"] = time.monotonic() - began
    return record


def run_case(case: Case, folder: Path, overrides: Sequence[str] = (), *, mended: bool = False) -> Outcome:
    """Train one case through the package's own stages and diagnose it, during and after."""
    parts = case.mended if mended and case.mended is not None else case.parts
    recipe = load_recipe(_write(case, parts, folder), list(overrides))
    prepared = prepare(recipe, read_data(recipe))
    job = training_job(prepared)
    if case.spoil is not None and not mended:
        job = replace(job, rows=case.spoil(_samples(job.rows)))
    facts = gather_facts(
        prepared.recipe,
        prepared.task,
        prepared.rows.splits,
        _samples(job.rows),
        prepared.renderer,
        steps=training_plan(job).steps,
        usual_learning_rate=usual_learning_rate(prepared.recipe.method.type, prepared.base.parameters),
        rows_available=len(parts.train) if parts.validation else None,
    )
    model, probe = LanguageModel(prepared.base.model), Probe(_samples(job.rows), _samples(job.validation))
    watcher, score = Watcher(facts), job.score
    assert isinstance(score, ValidationScore)  # every case has validation rows
    history: list[dict[str, Any]] = []

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "validation":
            event["probe"], event["answers"] = probe.measure(model), dict(score.answers())
        history.append(event)
        watcher.hear(event)

    hear({"kind": "validation", "step": 0, "loss": None})
    began = time.monotonic()
    not_finite = None
    try:
        carry_out(job, RunFolder.create_at(folder / "run"), data_key(prepared), hear)
    except DivergenceError as error:
        not_finite = NotFinite(step=error.step, rows=error.rows)
    seconds = time.monotonic() - began
    diagnoses = watcher.finish(not_finite)
    scores = _score(prepared, prepared.rows.splits.test)
    return Outcome(history, watcher.facts, diagnoses, watcher.told, scores, prepared.base.weights_sha256, seconds)


def facts_from(record: Mapping[str, Any]) -> TrainingFacts:
    """The facts of a published run."""
    kept = dict(record["facts"])
    for name in ("answers_from_words", "validation_shift", "test_shift"):
        kept[name] = None if kept[name] is None else Separation(**kept[name])
    broken = kept["not_finite"]
    kept["not_finite"] = None if broken is None else NotFinite(step=broken["step"], rows=tuple(broken["rows"]))
    return TrainingFacts(**kept)


def _samples(rows: Sequence[Any]) -> list[Sample]:
    """Rows of these tasks are single documents, never pairs."""
    return [row for row in rows if isinstance(row, Sample)]


def _write(case: Case, parts: Parts, folder: Path) -> Path:
    """The files of a case, as a user would have them; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"columns": {"prompt": "text", "answer": "answer"}}
    for name in ("train", "validation", "test"):
        rows = getattr(parts, name)
        if rows:
            with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([("text", "answer"), *rows])
            data[name] = f"{name}.csv"
    for name, text in case.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    recipe = {"base": {"model": BASE}, "data": data, "train": {"tensorboard": False, "patience": 0}}
    (folder / "recipe.yaml").write_text(json.dumps(_merged(recipe, case.settings)), encoding="utf-8")  # JSON is YAML
    return folder / "recipe.yaml"


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(first)
    for key, value in second.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def _score(prepared: Prepared, rows: Sequence[Example]) -> dict[str, float]:
    asked = [asking_conversation(prepared.task, row) for row in rows]
    given = engine_of(prepared).generate(asked, int(prepared.recipe.evaluate.max_new_tokens))
    return quick_score(prepared.task, [answer.text for answer in given], rows)


def _short(value: Any) -> Any:
    """Numbers to four digits: the file stays small, and what is found must not hang on the fifth."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _short(part) for key, part in value.items() if key not in _NOT_READ}
    return value


_NOT_READ = ("seconds", "memory_bytes", "tokens_per_second", "epoch", "steps", "machine")
"""Fields of events that depend on the machine, or that no diagnosis reads."""
