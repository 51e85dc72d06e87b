"""A recipe from beginning to end: check, baselines, training, evaluation, verdict, report."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.evaluation.rating import read_preferences
from tunesmith.evaluation.types import Evaluation
from tunesmith.pipeline.alternatives import run_baselines
from tunesmith.pipeline.clusters import clusters_in
from tunesmith.pipeline.concluding import compare_run, conclude, evidence_of, seeds_in, weights_of
from tunesmith.pipeline.continuing import STOPPED, Through, earlier_recipe, folder_for, goal_reached, remember
from tunesmith.pipeline.deciding import stop_before_training
from tunesmith.pipeline.evaluating import run_tuned
from tunesmith.pipeline.evidence import DECIDED_FROM, Compared
from tunesmith.pipeline.forgetting import General, forgetting_of, measure_general, sets_of, write_forgetting
from tunesmith.pipeline.learning_curve import run_learning_curve
from tunesmith.pipeline.loading import VERDICT, load_run
from tunesmith.pipeline.pairs import is_pairs, pairs_key, prepare_pairs, refuse_other_stages
from tunesmith.pipeline.prepare import DataFindingsError, Listener, Prepared, Rows, prepare, read_data
from tunesmith.pipeline.recording import PARTS, record, update_manifest
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.seeds import follow_further, train_further
from tunesmith.pipeline.training import carry_out, follow, run_training, training_job
from tunesmith.recipe import dump_recipe, parse_recipe
from tunesmith.recipe.overrides import resolve_paths
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import EventLog, RunFolder, write_text
from tunesmith.training import processes
from tunesmith.verdict.headline import headline
from tunesmith.verdict.types import Forgetting, Verdict

_MOST_LINES = 20
"""Lines of the data that an event names."""


def run(
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    new: bool = False,
    through: Through = "verdict",
    train_anyway: bool = False,
    listener: Listener | None = None,
) -> Result:
    """Run a recipe through a stage; a run of it that was interrupted is continued, a finished one is read.

    Where an alternative surely reaches `goal.target` before anything is trained, the run ends there: its result has no
    `training`, and that alternative is the verdict.

    Parameters
    ----------
    out: the run's folder; without it, the newest unfinished run of the same recipe, or a new folder.
    new: begin again in a new folder.
    through: `train` trains and evaluates nothing; `baselines` trains nothing; `evaluate` decides nothing.
    train_anyway: train although an alternative is good enough (`goal.when_reached: train`); a run that ended for that
        reason goes on.
    listener: hears every event as a dict, after it is in the run's `events.jsonl`.

    Raises `RecipeError` (also where `out` holds another recipe's run), `DataError`, `ResourceError`, `EngineError`.
    """
    # A recipe made in Python may hold relative paths; the run must be readable from any other folder.
    recipe = parse_recipe(resolve_paths(recipe.model_dump(), Path.cwd()))
    _refuse_search(recipe)
    if train_anyway:
        recipe = recipe.model_copy(update={"goal": recipe.goal.model_copy(update={"when_reached": "train"})})
    with processes.joined():
        _refuse_several_processes(recipe, through)
        if not processes.first():
            return _follow(recipe, through)
        # Started again after a process was lost, it is the same run.
        folder = folder_for(recipe, Path(out) if out is not None else None, new and not processes.restarts(), through)
        with folder.lock():
            remember(folder, recipe, check=out is not None)
            if goal_reached(folder, recipe, through):
                _tell_followers_nothing(recipe, through)
                result = load_run(folder)
            else:
                result = _run_first(recipe, folder, through, listener)
        processes.first_only(lambda: str(folder.path))
        return result


def _run_first(recipe: Recipe, folder: RunFolder, through: Through, listener: Listener | None) -> Result:
    """The stages, with a failure written into the run; one that goes on is unfinished, however it had ended."""
    folder.set_status("unfinished")
    with folder.events([listener] if listener is not None else []) as events:
        try:
            if is_pairs(recipe):
                return _train_pairs(recipe, folder, through, events, events.relay)
            return _run_stages(recipe, folder, through, events, events.relay)
        except TunesmithError as error:
            folder.set_status("failed", error=error.what.splitlines()[0])
            raise


def _follow(recipe: Recipe, through: Through) -> Result:
    """The part of a process that is not the first: the trainings, of the same rows on the same base."""
    if through == "baselines":
        processes.first_only(lambda: None)
    elif is_pairs(recipe):
        follow(prepare_pairs(recipe).job)
    else:
        prepared = prepare(recipe, read_data(recipe))
        follow(training_job(prepared))
        if through != "train":
            follow_further(prepared)
    place: str = processes.first_only(lambda: "")
    return load_run(RunFolder(Path(place)))


def _tell_followers_nothing(recipe: Recipe, through: Through) -> None:
    """To the other processes, which wait once for every training: that there is none."""
    trainings = 1 if through in ("train", "baselines") or is_pairs(recipe) else recipe.evaluate.seeds
    for _ in range(trainings):
        processes.first_only(lambda: None)


def _refuse_search(recipe: Recipe) -> None:
    """A run has one value for each setting; which of several is for a search to say."""
    if recipe.search is not None:
        raise RecipeError(
            "this recipe names settings to try, and a run has one of each",
            where="search",
            fix="`tunesmith search RECIPE` tries them and runs the best; or remove the section",
        )


def _refuse_several_processes(recipe: Recipe, through: Through) -> None:
    if processes.count() > 1 and recipe.data.learning_curve and through in ("evaluate", "verdict"):
        raise RecipeError(
            "a learning curve is trained in one process",
            where="data.learning_curve",
            fix="leave --nproc out, or set data.learning_curve: false and use `tunesmith data subsets`",
        )


def _run_stages(
    recipe: Recipe, folder: RunFolder, through: Through, events: EventLog, tell: Callable[[dict[str, Any]], None]
) -> Result:
    with _stage(events, "check", "reading and checking the data"):
        rows = read_data(recipe, listener=tell)
        if any(f.severity == "error" for f in rows.findings):
            raise DataFindingsError(rows.findings)
        if through != "train":
            _require_test_rows(rows, recipe)
        sets = sets_of(recipe) if through in ("evaluate", "verdict") else None
        prepared = prepare(recipe, rows, kept=earlier_recipe(folder), listener=tell)
        if any(f.severity == "error" for f in prepared.findings):
            raise DataFindingsError(prepared.findings)
        trained_before = _has_training_of(rows, folder)
        _forget_verdict(folder)
        record(prepared, recipe, folder)
    _tell_warnings(prepared.findings, tell)
    evaluations: list[Evaluation] = []
    if through != "train":
        with _stage(events, "baselines", "measuring the alternatives"):
            evaluations = run_baselines(prepared, folder, tell)
    if through == "baselines":
        _tell_followers_nothing(recipe, through)
        return _finish(prepared, folder, through, evaluations, None, None)
    if through == "verdict" and recipe.goal.when_reached == "stop" and not trained_before:
        stopped = _stop_if_good_enough(prepared, folder, events, tell, evaluations)
        if stopped is not None:
            _tell_followers_nothing(recipe, through)
            return stopped
    before: General | None = None
    if sets is not None:
        with _stage(events, "forgetting", "looking at what the base can do beside the task"):
            before = measure_general(sets, prepared, folder, tell, when="before")
    with _stage(events, "train", "training"):
        training, prepared = run_training(prepared, recipe, folder, tell)
    if through == "train":
        return _finish(prepared, folder, through, [], training, None)
    remarks: list[str] = []
    forgetting: Forgetting | None = None
    with _stage(events, "evaluate", "evaluating the tuned model"):
        ways = run_tuned(prepared, folder, tell)
        evaluations += ways
        if sets is not None and before is not None:
            sha = training["adapter_sha256"]
            after = measure_general(sets, prepared, folder, tell, when="after", adapter=sha)
            write_forgetting(folder, sets, before, after)
            forgetting = forgetting_of(sets, before, after, recipe.evaluate.confidence)
    weights = weights_of(prepared, folder)
    if recipe.data.learning_curve or recipe.evaluate.seeds > 1:
        # Further trainings bring bases of their own, and two may not fit into memory.
        prepared = replace(prepared, base=replace(prepared.base, model=None))
        gc.collect()
    if recipe.data.learning_curve:
        with _stage(events, "learning_curve", "training on parts of the rows"):
            curve = run_learning_curve(recipe, rows, folder.path / "learning_curve", tell, full=ways[0])
        remarks.append(curve.conclusion)
        tell({"kind": "note", "text": curve.conclusion})
    further: list[Evaluation] = []
    if recipe.evaluate.seeds > 1:
        with _stage(events, "seeds", "training with other seeds"):
            further = train_further(prepared, folder, tell)
    seeds = seeds_in(prepared, evaluations, [ways[0], *further]) if further else None
    compared, caveats = compare_run(prepared, folder, evaluations, training, forgetting, seeds)
    if through == "evaluate":
        return _finish(prepared, folder, through, evaluations, training, None, compared)
    with _stage(events, "verdict", "deciding"):
        evidence = evidence_of(prepared, evaluations, training, compared, [*remarks, *caveats], weights)
        verdict = conclude(folder, evidence, read_preferences(folder.evaluation))
    return _finish(prepared, folder, through, evaluations, training, verdict, compared)


def _stop_if_good_enough(
    prepared: Prepared,
    folder: RunFolder,
    events: EventLog,
    tell: Callable[[dict[str, Any]], None],
    evaluations: Sequence[Evaluation],
) -> Result | None:
    """The run's end where an alternative surely reaches the target already; None where none does."""
    if prepared.recipe.goal.target is None or not evaluations:
        return None
    compared, caveats = compare_run(prepared, folder, evaluations, None)
    evidence = evidence_of(prepared, evaluations, None, compared, caveats, None)
    verdict = stop_before_training(evidence.recipe, evidence.evaluations, evidence.costs, evidence.caveats)
    if verdict is None:
        return None
    with _stage(events, "verdict", "deciding"):
        tell({"kind": "note", "text": f"{verdict.reason} To train all the same: --train-anyway."})
        conclude(folder, evidence, read_preferences(folder.evaluation), verdict)
    folder.update_manifest(**{STOPPED: True})
    return _finish(prepared, folder, "verdict", evaluations, None, verdict, compared)


def _finish(
    prepared: Prepared,
    folder: RunFolder,
    through: Through,
    evaluations: Sequence[Evaluation],
    training: Mapping[str, Any] | None,
    verdict: Verdict | None,
    compared: Compared | None = None,
) -> Result:
    """How far the run got is written down; what was not compared yet is."""
    if compared is None:
        compared = compare_run(prepared, folder, evaluations, training)[0] if evaluations else Compared()
    folder.set_status("finished", verdict=headline(verdict) if verdict is not None else f"through {through}")
    folder.update_manifest(reached={through: True})
    return Result(
        folder,
        prepared.recipe,
        compared.comparison,
        training,
        verdict,
        compared.facts,
        compared.forgetting,
        compared.seeds,
    )


def _forget_verdict(folder: RunFolder) -> None:
    """Where the run was decided, and goes on all the same (told to train, or on other rows), that no longer holds."""
    manifest = folder.manifest()
    if not (manifest.get(STOPPED) or manifest.get("reached", {}).get("verdict")):
        return
    for path in (folder.path / VERDICT, folder.path / DECIDED_FROM, folder.report):
        path.unlink(missing_ok=True)
    folder.update_manifest(**{STOPPED: False}, reached={"verdict": False})


def _has_training_of(rows: Rows, folder: RunFolder) -> bool:
    """Whether an earlier command trained on these rows already: then nothing is saved by not training."""
    known = folder.manifest().get("data", {}).get("splits_sha256")
    return (folder.path / "training.json").is_file() and known == dict(rows.splits.hashes)


def _require_test_rows(rows: Rows, recipe: Recipe) -> None:
    """Raise `DataError` where there is nothing, or too little, to measure on."""
    least = 2 if recipe.evaluate.seeds > 1 else 1
    found = len(rows.splits.test)
    groups = clusters_in(rows.splits.test, recipe.data.split.group_by)
    if found >= least and groups is not None and len(set(groups.values())) < least:
        raise DataError(
            f"all {found} test rows are of one {recipe.data.split.group_by}, which shows no spread",
            where="data.split.group_by",
            expected=f"test rows of at least {least} where evaluate.seeds is above 1",
            fix="raise data.split.test, name a file in data.test, or set evaluate.seeds: 1",
        )
    if found >= least:
        return
    raise DataError(
        "there are no test rows, so nothing can be measured" if not found else "one test row shows no spread",
        where="data.test" if recipe.data.test is not None else "data.split.test",
        expected=f"at least {least}; some hundred tell small differences",
        fix="raise data.split.test or name a file in data.test; `tunesmith train` trains without measuring",
    )


def _tell_warnings(findings: Sequence[Any], tell: Callable[[dict[str, Any]], None]) -> None:
    for finding in findings:
        if finding.severity == "warning":
            said = {"text": finding.message, "code": finding.code, "count": finding.count}
            tell({"kind": "warning", **said, "lines": list(finding.lines[:_MOST_LINES])})


def _train_pairs(
    recipe: Recipe, folder: RunFolder, through: Through, events: EventLog, tell: Callable[[dict[str, Any]], None]
) -> Result:
    """Pairs of texts: trained, and nothing else."""
    refuse_other_stages(through)
    with _stage(events, "check", "reading and checking the pairs"):
        prepared = prepare_pairs(recipe, earlier_recipe(folder))
        reasons = {c.key: c.reason for c in prepared.choices}
        write_text(folder.recipe_file, dump_recipe(prepared.recipe, reasons, omit_auto=True))
        data = {
            "files_sha256": prepared.sources,
            "splits_sha256": dict(prepared.splits.hashes),
            "rows": {part: len(getattr(prepared.splits, part)) for part in PARTS},
            "left_out": prepared.left_out,
        }
        update_manifest(folder, recipe, prepared.recipe, data, prepared.job.base, {})
    _tell_warnings(prepared.findings, tell)
    with _stage(events, "train", "training"):
        facts, _ = carry_out(prepared.job, folder, pairs_key(prepared), tell)
    folder.set_status("finished", verdict="through train")
    folder.update_manifest(reached={through: True})
    return Result(folder, prepared.recipe, None, facts, None, {})


@contextmanager
def _stage(events: EventLog, stage: str, title: str) -> Iterator[None]:
    began = time.monotonic()
    events.write("stage_started", stage=stage, title=title)
    yield
    events.write("stage_finished", stage=stage, seconds=time.monotonic() - began, cached=False)
