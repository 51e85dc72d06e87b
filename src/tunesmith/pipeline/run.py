"""A recipe from beginning to end: check, baselines, training, evaluation, verdict, report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.reading import source_sha256
from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.evaluation.comparison import Comparison
from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.models.load import LoadedBase
from tunesmith.pipeline.learning_curve import run_learning_curve
from tunesmith.pipeline.opening import open_base, open_tuned
from tunesmith.pipeline.pairs import is_pairs, pairs_key, prepare_pairs, refuse_other_stages
from tunesmith.pipeline.prepare import DataFindingsError, Listener, Prepared, prepare, read_data
from tunesmith.pipeline.result import Model, Result
from tunesmith.pipeline.stages import (
    compare_all,
    compare_without_leaks,
    costs_of,
    decide_run,
    run_baselines,
    run_tuned,
)
from tunesmith.pipeline.training import carry_out, follow, run_training, training_job
from tunesmith.recipe import differences, dump_recipe, load_recipe, parse_recipe, recipe_hash
from tunesmith.recipe.overrides import resolve_paths
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import EventLog, RunFolder, environment, list_runs, write_json, write_text
from tunesmith.tasks import restore_task, task_record
from tunesmith.text.render import Renderer
from tunesmith.training import processes
from tunesmith.verdict.headline import headline
from tunesmith.verdict.report import write_report
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.types import CandidateCost, Verdict

Through = Literal["train", "baselines", "evaluate", "verdict"]
_TASK = "task.json"
_ASKED = "recipe.asked.yaml"
"""The recipe as it was given, `auto` and all: what a repeated command is compared with."""


def run(
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    new: bool = False,
    through: Through = "verdict",
    listener: Listener | None = None,
) -> Result:
    """Run a recipe through a stage; a run of it that was interrupted is continued, a finished one is read.

    Parameters
    ----------
    out: the run's folder; without it, the newest unfinished run of the same recipe, or a new folder.
    new: begin again in a new folder.
    through: `train` trains and evaluates nothing; `baselines` trains nothing; `evaluate` decides nothing.
    listener: hears every event as a dict, after it is in the run's `events.jsonl`.

    Raises `RecipeError` (also where `out` holds another recipe's run), `DataError`, `ResourceError`, `EngineError`.
    """
    # A recipe made in Python may hold relative paths; the run must be readable from any other folder.
    recipe = parse_recipe(resolve_paths(recipe.model_dump(), Path.cwd()))
    with processes.joined():
        if not processes.first():
            return _follow(recipe, through)
        # Started again after a process was lost, it is the same run.
        folder = _folder_for(recipe, Path(out) if out is not None else None, new and not processes.restarts(), through)
        with folder.lock():
            _remember(folder, recipe, check=out is not None)
            if _goal_reached(folder, recipe, through):
                processes.first_only(lambda: None)
                result = load_run(folder)
            else:
                result = _run_first(recipe, folder, through, listener)
        processes.first_only(lambda: str(folder.path))
        return result


def _run_first(recipe: Recipe, folder: RunFolder, through: Through, listener: Listener | None) -> Result:
    """The stages, with a failure written into the run."""
    with folder.events([listener] if listener is not None else []) as events:
        try:
            return _run_stages(recipe, folder, through, events)
        except TunesmithError as error:
            folder.set_status("failed", error=error.what.splitlines()[0])
            raise


def _follow(recipe: Recipe, through: Through) -> Result:
    """The part of a process that is not the first: the training, of the same rows on the same base."""
    if through == "baselines":
        processes.first_only(lambda: None)
    else:
        follow(prepare_pairs(recipe).job if is_pairs(recipe) else training_job(prepare(recipe, read_data(recipe))))
    place: str = processes.first_only(lambda: "")
    return load_run(RunFolder(Path(place)))


def load_run(folder: RunFolder) -> Result:
    """What an earlier process left in a run's folder."""
    if not folder.recipe_file.is_file():
        raise RecipeError("this run did not get as far as its recipe", where=str(folder.path))
    recipe = load_recipe(folder.recipe_file)
    training = folder.path / "training.json"
    facts = json.loads(training.read_text()) if training.is_file() else None
    if facts is not None:
        facts.pop("history", None)
    kept = folder.path / "verdict.json"
    verdict = Verdict(**_tuples(json.loads(kept.read_text()))) if kept.is_file() else None
    comparison, candidates = _load_comparison(folder)
    return Result(folder, recipe, comparison, facts, verdict, candidates)


def load_model(folder: RunFolder, recipe: Recipe, *, tuned: bool) -> Model:
    """The run's tuned model, or its base asked in the same way."""
    if tuned and not (folder.adapter.is_dir() or folder.model.is_dir()):
        raise RecipeError("this run has no tuned model yet", where=str(folder.path), fix="tunesmith run RECIPE")
    base = open_tuned(recipe, folder) if tuned else open_base(recipe)[0]
    engine = TorchEngine(base.model, Renderer(base.tokenizer, recipe.base.chat_template), base.context)
    return Model(engine, restore_task(json.loads((folder.path / _TASK).read_text())), recipe)


def _run_stages(recipe: Recipe, folder: RunFolder, through: Through, events: EventLog) -> Result:
    def tell(event: dict[str, Any]) -> None:
        events.write(event["kind"], **{k: v for k, v in event.items() if k != "kind"})

    if is_pairs(recipe):
        return _train_pairs(recipe, folder, through, events, tell)
    with _stage(events, "check", "reading and checking the data"):
        rows = read_data(recipe, listener=tell)
        if any(f.severity == "error" for f in rows.findings):
            raise DataFindingsError(rows.findings)
        prepared = prepare(recipe, rows, kept=_earlier(folder), listener=tell)
        errors = [f for f in prepared.findings if f.severity == "error"]
        if errors:
            raise DataFindingsError(prepared.findings)
        _record(prepared, recipe, folder)
    for finding in prepared.findings:
        if finding.severity == "warning":
            tell({"kind": "warning", "text": finding.message, "code": finding.code, "count": finding.count})
    evaluations: list[Evaluation] = []
    if through != "train":
        with _stage(events, "baselines", "measuring the alternatives"):
            evaluations = run_baselines(prepared, folder, tell)
    training: dict[str, Any] | None = None
    verdict: Verdict | None = None
    remarks: list[str] = []
    if through == "baselines":
        processes.first_only(lambda: None)
    else:
        with _stage(events, "train", "training"):
            training, prepared = run_training(prepared, recipe, folder, tell)
    if through in ("evaluate", "verdict"):
        with _stage(events, "evaluate", "evaluating the tuned model"):
            evaluations.append(run_tuned(prepared, folder, tell))
        if recipe.data.learning_curve:
            with _stage(events, "learning_curve", "training on parts of the rows"):
                curve = run_learning_curve(recipe, rows, folder.path / "learning_curve", tell, full=evaluations[-1])
            remarks.append(curve.conclusion)
            tell({"kind": "note", "text": curve.conclusion})
    comparison = compare_all(prepared, evaluations) if evaluations else None
    clean = compare_without_leaks(prepared, evaluations)
    if comparison is not None:
        _save_comparison(folder, comparison, evaluations, clean)
    if through == "verdict" and comparison is not None and training is not None:
        with _stage(events, "verdict", "deciding"):
            costs = costs_of(prepared, evaluations, training)
            verdict = decide_run(prepared, evaluations, comparison, costs, training, clean, remarks)
            write_json(folder.path / "verdict.json", _plain(verdict))
            _report(prepared, folder, evaluations, comparison, costs, training, verdict)
    folder.set_status("finished", verdict=headline(verdict) if verdict is not None else f"through {through}")
    folder.update_manifest(reached={through: True})
    return Result(folder, prepared.recipe, comparison, training, verdict, _facts(evaluations))


def _train_pairs(
    recipe: Recipe, folder: RunFolder, through: Through, events: EventLog, tell: Callable[[dict[str, Any]], None]
) -> Result:
    """Pairs of texts: trained, and nothing else."""
    refuse_other_stages(through)
    with _stage(events, "check", "reading and checking the pairs"):
        prepared = prepare_pairs(recipe, _earlier(folder))
        reasons = {c.key: c.reason for c in prepared.choices}
        write_text(folder.recipe_file, dump_recipe(prepared.recipe, reasons, omit_auto=True))
        parts = {part: len(getattr(prepared.splits, part)) for part in ("train", "validation", "test")}
        data = {
            "files_sha256": prepared.sources,
            "splits_sha256": dict(prepared.splits.hashes),
            "rows": parts,
            "left_out": prepared.left_out,
        }
        base = prepared.job.base
        _update_manifest(folder, recipe, prepared.recipe, data, base, {})
    for finding in prepared.findings:
        if finding.severity == "warning":
            tell({"kind": "warning", "text": finding.message, "code": finding.code, "count": finding.count})
    with _stage(events, "train", "training"):
        facts, _ = carry_out(prepared.job, folder, pairs_key(prepared), tell)
    folder.set_status("finished", verdict="through train")
    folder.update_manifest(reached={through: True})
    return Result(folder, prepared.recipe, None, facts, None, {})


def _folder_for(recipe: Recipe, out: Path | None, new: bool, through: Through) -> RunFolder:
    """The run's folder: the one asked for, one to continue, or a new one."""
    if out is not None:
        if new and out.exists():
            raise RecipeError("--new with a folder that exists", where=str(out), fix="choose another folder")
        return RunFolder.create_at(out)
    root, name = Path(recipe.output.dir), recipe.name or Path(recipe.data.train).stem.replace(" ", "-")
    if not new:
        wanted = recipe_hash(recipe)
        same = [f for f in list_runs(root) if f.manifest().get("recipe_sha256") == wanted]
        unfinished = [f for f in same if not _goal_reached(f, recipe, through) and not f.running]
        finished = [f for f in same if _goal_reached(f, recipe, through)]
        for folder in unfinished[:1] or finished[:1]:
            return folder
    return RunFolder.create(root, _safe(name))


def _earlier(folder: RunFolder) -> Recipe | None:
    """The resolved recipe that an earlier part of this run left."""
    return load_recipe(folder.recipe_file) if folder.recipe_file.is_file() else None


def _remember(folder: RunFolder, recipe: Recipe, check: bool) -> None:
    """Keep the recipe as it was given; `check` refuses a folder that holds a run of another one."""
    asked = folder.path / _ASKED
    if not asked.is_file():
        folder.update_manifest(recipe_sha256=recipe_hash(recipe))
        write_text(asked, dump_recipe(recipe))
        return
    changed = differences(load_recipe(asked), recipe) if check else []
    if changed:
        key, before, now = changed[0]
        raise RecipeError(
            f"this folder holds a run of another recipe: {key} was {before!r} and is now {now!r}"
            + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""),
            where=str(folder.path),
            fix="choose another --out, or go back to the recipe of this run",
        )


def _goal_reached(folder: RunFolder, recipe: Recipe, through: Through) -> bool:
    """Whether the run went through this stage, on files that are still what they were."""
    manifest = folder.manifest()
    reached = manifest.get("reached", {})
    if not (reached.get("verdict") or reached.get(through)):
        return False
    known = manifest.get("data", {}).get("files_sha256", {})
    files = {part: getattr(recipe.data, part) for part in known}
    return all(source and _holds(source, known[part]) for part, source in files.items())


def _holds(source: str, sha256: str) -> bool:
    """Whether a source still can be read and gives what it gave."""
    try:
        return source_sha256(source) == sha256
    except DataError:
        return False


def _safe(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).lstrip("._-")
    return kept or "run"


@contextmanager
def _stage(events: EventLog, stage: str, title: str) -> Iterator[None]:
    began = time.monotonic()
    events.write("stage_started", stage=stage, title=title)
    yield
    events.write("stage_finished", stage=stage, seconds=time.monotonic() - began, cached=False)


def _record(prepared: Prepared, recipe: Recipe, folder: RunFolder) -> None:
    """Write the resolved recipe and the manifest."""
    reasons = {c.key: c.reason for c in prepared.choices}
    write_text(folder.recipe_file, dump_recipe(prepared.recipe, reasons, omit_auto=True))
    write_json(folder.path / _TASK, task_record(prepared.task))
    rows = prepared.rows
    data = {
        "files_sha256": rows.sources,
        "splits_sha256": dict(rows.splits.hashes),
        "rows": {part: len(getattr(rows.splits, part)) for part in ("train", "validation", "test")},
        "left_out": rows.left_out,
    }
    more = {
        "chat_template": prepared.renderer.template,
        "test_rows_in_training_text": list(prepared.seen_test_rows),
    }
    _update_manifest(folder, recipe, prepared.recipe, data, prepared.base, more)


def _update_manifest(
    folder: RunFolder,
    asked: Recipe,
    resolved: Recipe,
    data: Mapping[str, Any],
    base: LoadedBase,
    more: Mapping[str, Any],
) -> None:
    folder.update_manifest(
        recipe_sha256=recipe_hash(asked),
        data=dict(data),
        base={
            "model": base.name,
            "revision": base.revision,
            "weights_sha256": base.weights_sha256,
            "parameters": base.parameters,
            "context": base.context,
            **more,
        },
        seed=resolved.train.seed,
        environment=environment(),
        command=sys.argv,
    )


def _report(
    prepared: Prepared,
    folder: RunFolder,
    evaluations: Sequence[Evaluation],
    comparison: Comparison,
    costs: Mapping[str, CandidateCost],
    training: Mapping[str, Any],
    verdict: Verdict,
) -> None:
    history = json.loads((folder.path / "training.json").read_text())["history"]
    recipe, rows = prepared.recipe, prepared.rows
    write_report(
        folder.report,
        ReportData(
            name=folder.name,
            created=datetime.now().strftime("%Y-%m-%d %H:%M"),
            task=rows.task_type,
            recipe_yaml=folder.recipe_file.read_text(),
            manifest=folder.manifest(),
            goal=recipe.goal,
            prices=recipe.verdict.prices,
            verdict=verdict,
            evaluations=tuple(evaluations),
            comparison=comparison.values,
            differences=comparison.differences,
            costs=tuple(costs.values()),
            findings=prepared.findings,
            splits_explanation=rows.splits.explanation,
            split_sizes={part: len(getattr(rows.splits, part)) for part in ("train", "validation", "test")},
            training=training,
            history=tuple(history),
            labels=tuple(getattr(prepared.task, "labels", ())),
            choices=tuple((c.key, str(c.value), c.reason) for c in prepared.choices),
        ),
    )


def _facts(evaluations: Sequence[Evaluation]) -> dict[str, Mapping[str, Any]]:
    """What is worth showing of each candidate beside its metrics."""
    return {
        e.candidate: {"latency_p50": e.latency_p50, "latency_p95": e.latency_p95, "seconds": e.seconds, **e.notes}
        for e in evaluations
    }


def _save_comparison(
    folder: RunFolder, comparison: Comparison, evaluations: Sequence[Evaluation], clean: Comparison | None
) -> None:
    """Write the comparison; `clean` is the one without leaked test rows."""
    kept = {**_sides(comparison), "candidates": _facts(evaluations)}
    if clean is not None:
        kept["without_leaks"] = _sides(clean)
    write_json(folder.path / "comparison.json", kept)


def _sides(comparison: Comparison) -> dict[str, Any]:
    return {
        "metric": comparison.metric,
        "values": [_plain(v) for v in comparison.values],
        "differences": [_plain(d) for d in comparison.differences],
    }


def _load_comparison(folder: RunFolder) -> tuple[Comparison | None, dict[str, Any]]:
    path = folder.path / "comparison.json"
    if not path.is_file():
        return None, {}
    kept = json.loads(path.read_text())
    comparison = Comparison(
        kept["metric"],
        tuple(MetricValue(**v) for v in kept["values"]),
        tuple(PairedDifference(**d) for d in kept["differences"]),
    )
    return comparison, kept["candidates"]


def _plain(value: Any) -> dict[str, Any]:
    return asdict(value)


def _tuples(kept: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
