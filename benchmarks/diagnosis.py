"""Does the diagnosis find what is wrong, does its remedy help, and does it keep quiet where nothing is?

    python benchmarks/diagnosis.py [--quick] [--seed N] [--keep DIR] [NAME ...]

Ten runs are spoiled on purpose and ten are healthy (other tasks, sizes, methods, seeds), all on `embedded:base` with
small seeded tasks (`diagnosis_tasks.py`). A spoiled run must get its diagnosis and no other; then the remedy is applied
(the recipe changes that the diagnosis names, and the rows mended where only rows can be) and must give a better task
metric on the same test rows. A healthy run must get none, at any validation. Results go, with the events of every run,
to benchmarks/results/diagnosis-<date>.json, and to benchmarks/diagnosis.md. About 15 minutes on one core; `--quick`
takes a few runs of a few steps. Ends with 5 where one is not as it must be.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import csv
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import diagnosis_tasks as tasks
from diagnosis_tasks import Row
from tunesmith.data.types import Example
from tunesmith.models.forward import LanguageModel
from tunesmith.pipeline.prepare import Prepared, prepare, read_data
from tunesmith.pipeline.stage import data_key, engine_of
from tunesmith.pipeline.training import carry_out, training_job, training_plan
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, environment
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.metrics import quick_score
from tunesmith.text.types import Sample
from tunesmith.training.diagnosis import Diagnosis, NotFinite, TrainingFacts, Watcher, answer_measures
from tunesmith.training.diagnosis.gather import gather_facts
from tunesmith.training.diagnosis.probe import Probe, measure_rows
from tunesmith.training.diagnosis.types import Separation
from tunesmith.training.loop import DivergenceError

HERE = Path(__file__).resolve().parent
NO_END = "{%- for m in messages -%}{{ '### ' + m.role + '\\n' + m.content + '\\n\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '### assistant\\n' }}{%- endif -%}"  # noqa: E501
"""A chat template without an end-of-turn token, as people write them."""


@dataclass(frozen=True)
class Parts:
    """Rows of a run. Without `validation`, both parts are split off the training file as the recipe says."""

    train: Sequence[Row]
    test: Sequence[Row]
    validation: Sequence[Row] = ()


@dataclass(frozen=True)
class Case:
    """One run: its rows, what its recipe says beside them, and what is expected of it.

    expected: the code of the right diagnosis; None for a healthy run. spoil: changes samples, where no row can.
    mended: rows with the mistake taken out, where no setting can do that. metric: what the remedy must improve.
    """

    name: str
    parts: Parts
    settings: Mapping[str, Any] = field(default_factory=dict)
    expected: str | None = None
    spoil: Callable[[Sequence[Sample]], list[Sample]] | None = None
    mended: Parts | None = None
    metric: str = "accuracy"
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one training gave: events, facts, diagnoses at the end, the first validation each code was told at."""

    history: list[dict[str, Any]]
    facts: TrainingFacts
    diagnoses: tuple[Diagnosis, ...]
    told_at: Mapping[str, int]
    scores: dict[str, float]
    seconds: float


def run_case(case: Case, folder: Path, overrides: Sequence[str] = (), *, mended: bool = False) -> Outcome:
    """Train one case through the package's own stages and diagnose it, during and after."""
    parts = case.mended if mended and case.mended is not None else case.parts
    recipe = load_recipe(_write(case, parts, folder), list(overrides))
    prepared = prepare(recipe, read_data(recipe))
    job = training_job(prepared)
    if case.spoil is not None and not mended:
        job = replace(job, rows=case.spoil(_samples(job.rows)))
    score, answers = _scoring(prepared)
    job = replace(job, score=score)
    facts = gather_facts(
        prepared.recipe,
        prepared.task,
        prepared.rows.splits,
        _samples(job.rows),
        prepared.renderer,
        steps=training_plan(job).steps,
        usual_learning_rate=_usual_rate(recipe),
        rows_available=len(parts.train) if parts.validation else None,
    )
    model, probe = LanguageModel(prepared.base.model), Probe(_samples(job.rows), _samples(job.validation))
    watcher = Watcher(facts)
    history: list[dict[str, Any]] = []

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "validation":
            event["probe"], event["answers"] = probe.measure(model), answers()
        history.append(event)
        watcher.hear(event)

    hear({"kind": "validation", "step": 0, "loss": None})
    began = time.monotonic()
    not_finite = None
    try:
        carry_out(job, RunFolder.create_at(folder / "run"), data_key(prepared), hear)
    except DivergenceError:
        measured = measure_rows(model, _samples(job.rows))
        bad = np.flatnonzero(~np.isfinite(measured.loss))
        broken = [job.rows[i].example_id for i in bad]
        not_finite = NotFinite(step=max(e.get("step", 0) for e in history) + 1, rows=tuple(broken))
    seconds = time.monotonic() - began
    diagnoses = watcher.finish(not_finite)
    scores = _score(prepared, prepared.rows.splits.test)
    return Outcome(history, watcher.facts, diagnoses, watcher.told, scores, seconds)


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
    recipe = _merged({"data": data, "train": {"tensorboard": False, "patience": 0}}, case.settings)
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return folder / "recipe.yaml"


def _usual_rate(recipe: Recipe) -> float:
    """What `train.learning_rate: auto` means for this recipe."""
    asked = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": "auto"})})
    return float(prepare(asked, read_data(asked), at_most=8).recipe.train.learning_rate)


def _scoring(prepared: Prepared) -> tuple[Callable[[], Mapping[str, float]], Callable[[], Mapping[str, float]]]:
    """What scores validation answers, and what else the last answers tell."""
    rows = prepared.rows.splits.validation[: prepared.recipe.train.eval_rows]
    told: dict[str, float] = {}

    def score() -> Mapping[str, float]:
        texts, ended = _answers(prepared, rows)
        parsed = [prepared.task.parse(text) for text in texts]
        told.clear()
        told.update(answer_measures(parsed, [prepared.task.target(row) for row in rows], ended))
        return quick_score(prepared.task, texts, rows)

    return score, lambda: dict(told)


def _score(prepared: Prepared, rows: Sequence[Example]) -> dict[str, float]:
    return quick_score(prepared.task, _answers(prepared, rows)[0], rows)


def _answers(prepared: Prepared, rows: Sequence[Example]) -> tuple[list[str], list[bool]]:
    asked = [asking_conversation(prepared.task, row) for row in rows]
    given = list(engine_of(prepared).generate(asked, int(prepared.recipe.evaluate.max_new_tokens)))
    return [answer.text for answer in given], [answer.stopped for answer in given]


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(first)
    for key, value in second.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


# The runs.


def parts_of(rows: Sequence[Row], validation: int = 40, test: int = 60) -> Parts:
    """The last rows are held out."""
    end = len(rows) - validation - test
    return Parts(train=rows[:end], validation=rows[end : end + validation], test=rows[end + validation :])


def prompts_only(samples: Sequence[Sample]) -> list[Sample]:
    """The loss on everything but the answers, as a wrong mask does."""
    return [replace(s, weights=np.r_[0, s.weights[1:] == 0].astype(np.float32)) for s in samples]


def one_not_a_number(samples: Sequence[Sample]) -> list[Sample]:
    """A weight of one row in the middle is not a number."""
    bad = len(samples) // 2
    return [replace(s, weights=s.weights * np.float32(math.nan)) if i == bad else s for i, s in enumerate(samples)]


def steps(count: int, **more: Any) -> dict[str, Any]:
    """Settings of a run of `count` steps."""
    return {"train": {"max_steps": count, **more}}


def spoiled(seed: int) -> list[Case]:
    """Ten mistakes."""
    tones, intents = tasks.tones(310, seed), tasks.intents(340, seed)
    few = parts_of(intents)
    shouted = [(prompt.upper().replace(" ", "-"), answer) for prompt, answer in tasks.intents(220, seed + 50)]
    by_order = Parts(train=[*tasks.intents(240, seed), *shouted[:80]], test=shouted[140:])
    mostly_warm = tasks.uneven(tasks.tones(1400, seed, labels=2), "warm", 0.9, 560, seed)
    muddled = Parts(tasks.shuffled_answers(few.train, seed), few.test, tasks.shuffled_answers(few.validation, seed + 1))
    return [
        Case(
            "learning rate 100 times too high", parts_of(tones), steps(160, learning_rate=0.2), "learning_rate_too_high"
        ),
        Case(
            "learning rate 100 times too low", parts_of(tones), steps(160, learning_rate=2e-5), "learning_rate_too_low"
        ),
        Case(
            "20 rows for 50 epochs",
            few,
            {"data": {"max_rows": 20}, "train": {"epochs": 50}},
            "too_little_data",
        ),
        Case(
            "end of turn masked",
            parts_of(tasks.dates(340, seed)),
            {"base": {"chat_template": "./no_end.jinja"}, **steps(160)},
            "end_not_learnt",
            metric="exact_match",
            files={"no_end.jinja": NO_END},
        ),
        Case("shuffled labels", muddled, steps(240), "labels_unrelated", mended=few),
        Case("prompt-only loss", parts_of(tones), steps(120), "answers_not_learnt", prompts_only),
        Case(
            "rank 1 on a hard task",
            parts_of(tasks.codes(400, seed, names=48)),
            {"method": {"rank": 1}, **steps(300)},
            "rank_too_small",
        ),
        Case(
            "train/test mismatch",
            by_order,
            {"data": {"split": {"method": "order", "validation": 80}}, **steps(240)},
            "validation_differs",
        ),
        Case(
            "90 % one class",
            parts_of(mostly_warm, validation=60, test=200),
            {"train": {"epochs": 2}},
            "one_answer_for_all",
            metric="macro_f1",
        ),
        Case("a row that is not a number", few, steps(120), "row_not_finite", one_not_a_number),
    ]


def healthy(seed: int) -> list[Case]:
    """Ten runs as they should be."""
    return [
        Case("tones, LoRA", parts_of(tasks.tones(310, seed + 1)), {}),
        Case("intents, LoRA rank 4", parts_of(tasks.intents(340, seed + 1)), {"method": {"rank": 4}, **steps(240)}),
        Case("dates, LoRA", parts_of(tasks.dates(380, seed + 1)), steps(300)),
        Case("orders (extraction), LoRA", parts_of(tasks.orders(300, seed + 1)), steps(150)),
        Case("tones, all weights", parts_of(tasks.tones(310, seed + 2)), {"method": "full", **steps(200)}),
        Case("intents, 120 rows", parts_of(tasks.intents(220, seed + 3)), {}),
        Case("codes, rank 32", parts_of(tasks.codes(500, seed + 1, names=48)), {"method": {"rank": 32}, **steps(400)}),
        Case("two tones, 75 % one of them", _uneven_but_enough(seed), {}),
        Case("free replies", parts_of(tasks.replies(340, seed + 1)), steps(240)),
        Case("intents, constant rate, dropout", parts_of(tasks.intents(600, seed + 4)), {
            "method": {"dropout": 0.05}, **steps(240, schedule="constant", learning_rate=1e-3, batch_size=16)}),
    ]  # fmt: skip


def quick(seed: int) -> list[Case]:
    """A few of them in a few steps."""
    tones = tasks.tones(200, seed, labels=2)
    return [
        Case(
            "learning rate 100 times too high", parts_of(tones), steps(60, learning_rate=0.2), "learning_rate_too_high"
        ),
        Case(
            "learning rate 100 times too low", parts_of(tones), steps(40, learning_rate=2e-5), "learning_rate_too_low"
        ),
        Case("prompt-only loss", parts_of(tones), steps(24), "answers_not_learnt", prompts_only),
        Case("a row that is not a number", parts_of(tones), steps(60), "row_not_finite", one_not_a_number),
        Case("orders, LoRA", parts_of(tasks.orders(200, seed), 20, 20), steps(50, evaluations=4), metric="entity_f1"),
    ]


def _uneven_but_enough(seed: int) -> Parts:
    pool = tasks.tones(1500, seed + 5, labels=2)
    return parts_of(tasks.uneven(pool, "warm", 0.75, 360, seed))


# What is published.


def judge(case: Case, folder: Path, remedied: bool = True) -> dict[str, Any]:
    """Run a case, and its remedy where it has one (and it is wanted); everything a reader wants to check."""
    first = run_case(case, folder / "as it was")
    codes = [d.code for d in first.diagnoses]
    record: dict[str, Any] = {
        "name": case.name,
        "expected": case.expected,
        "codes": codes,
        "told_at": first.told_at,
        "diagnoses": [d.record() for d in first.diagnoses],
        "metric": case.metric,
        "scores": first.scores,
        "seconds": first.seconds,
        "facts": asdict(first.facts),
        "history": [_short(event) for event in first.history if event["kind"] in ("train_step", "validation")],
    }
    if case.expected is None:
        record["right"] = not first.told_at
        return record
    right = codes == [case.expected] and set(first.told_at) == {case.expected}
    if codes and remedied:
        remedy = first.diagnoses[0].overrides
        second = run_case(case, folder / "remedied", remedy, mended=True)
        record |= {
            "remedy": list(remedy),
            "rows_mended": case.mended is not None or case.spoil is not None,
            "scores_after": second.scores,
            "codes_after": [d.code for d in second.diagnoses],
            "seconds_after": second.seconds,
        }
        before, after = record["scores"].get(case.metric, 0.0), second.scores[case.metric]
        right = right and after > before
    record["right"] = right
    return record


def facts_from(record: Mapping[str, Any]) -> TrainingFacts:
    """The facts of a published run."""
    kept = dict(record["facts"])
    for name in ("answers_from_words", "validation_shift", "test_shift"):
        kept[name] = None if kept[name] is None else Separation(**kept[name])
    broken = kept["not_finite"]
    kept["not_finite"] = None if broken is None else NotFinite(step=broken["step"], rows=tuple(broken["rows"]))
    return TrainingFacts(**kept)


def _short(value: Any) -> Any:
    """Numbers to four digits: the file stays small, and what is found must not hang on the fifth."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _short(part) for key, part in value.items() if key not in _NOT_READ}
    return value


_NOT_READ = ("seconds", "memory_bytes", "tokens_per_second", "epoch", "steps", "machine")
"""Fields of events that depend on the machine, or that no diagnosis reads."""


def page(records: Sequence[Mapping[str, Any]], seed: int) -> str:
    """All runs as markdown."""
    lines = [
        "# Diagnosis: spoiled and healthy runs",
        "",
        f"Made by `python benchmarks/diagnosis.py` (seed {seed}), base `embedded:base`. Metrics are of the test rows,",
        "before and after the remedy; *told at* is the first validation at which the diagnosis was there. Rows are",
        "mended where no setting can do it: right labels, a right mask, a number for a weight.",
        "",
        "| spoiled run | diagnosis | told at step | remedy | metric | before | after |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        if r["expected"] is not None:
            metric = r["metric"]
            words = ", ".join(f"`{setting}`" for setting in r.get("remedy", ()))
            mended = "rows mended" if r.get("rows_mended") else ""
            found = ", ".join(f"`{code}`" for code in r["codes"]) + ("" if r["right"] else " **(wrong)**")
            at = next((str(step) for code, step in r["told_at"].items() if code == r["expected"]), "end")
            after = f"{100 * r['scores_after'][metric]:.0f} %" if "scores_after" in r else ""
            remedy = "; ".join(part for part in (words, mended) if part)
            before = f"{100 * r['scores'].get(metric, 0.0):.0f} %"
            lines.append(f"| {r['name']} | {found} | {at} | {remedy} | {metric} | {before} | {after} |")
    lines += ["", "| healthy run | diagnosis | test metric |", "|---|---|---|"]
    for r in records:
        if r["expected"] is None:
            found = ", ".join(dict.fromkeys([*r["codes"], *r["told_at"]])) or "none"
            name, value = next(iter(r["scores"].items()))
            lines.append(f"| {r['name']} | {found} | {name} {100 * value:.0f} % |")
    lines += ["", "What each spoiled run was told:", ""]
    for r in records:
        for d in r["diagnoses"] if r["expected"] is not None else ():
            lines.append(f"- **{r['name']}**: {d['title']}. {d['seen']} {d['why']} *{d['remedy']}*")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help="words of the runs wanted; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few runs of a few steps, without remedies")
    parser.add_argument("--keep", type=Path, help="folder for the runs' files; else they are removed")
    parser.add_argument("--json", type=Path, help="where to write the results; else benchmarks/results")
    arguments = parser.parse_args()
    seed = arguments.seed
    cases = quick(seed) if arguments.quick else [*spoiled(seed), *healthy(seed)]
    if arguments.names:
        cases = [case for case in cases if any(name in case.name for name in arguments.names)]
    records = []
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or Path(temporary)
        for case in cases:
            folder = root / case.name.replace(" ", "-").replace("/", "-").replace("%", "percent")
            record = judge(case, folder, remedied=not arguments.quick)
            records.append(record)
            shown = ("name", "right", "codes", "told_at", "scores", "scores_after", "seconds")
            print(json.dumps({key: record.get(key) for key in shown}), flush=True)
    results = {"seed": seed, "date": str(date.today()), "environment": environment(), "runs": records}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=None) + "\n")
    elif not arguments.names and not arguments.quick:
        target = HERE / "results" / f"diagnosis-{date.today()}.json"
        target.write_text(json.dumps(results, separators=(",", ":")) + "\n")
        (HERE / "diagnosis.md").write_text(page(records, seed))
    return 0 if all(record["right"] for record in records) else 5


if __name__ == "__main__":
    raise SystemExit(main())
