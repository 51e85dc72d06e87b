"""A search over a recipe's settings, from its trials to the verdict on the best.

Every trial is a run of its own in `<out>/trials/001`, …, trained and not evaluated: no test row is answered before the
choice is made. The best trial's training becomes the run in `<out>`, which goes on to the verdict without training
again.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.reading import source_sha256
from tunesmith.errors import DataError, RecipeError, ResourceError
from tunesmith.pipeline.continuing import ASKED, safe_name
from tunesmith.pipeline.named_files import named_files
from tunesmith.pipeline.pairs import is_pairs
from tunesmith.pipeline.prepare import DataFindingsError, Listener, read_data
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.run import run
from tunesmith.pipeline.searching.page import write_page
from tunesmith.pipeline.searching.record import RECORD, SCORED_BY, trials_shown
from tunesmith.pipeline.searching.scoring import LOSS, direction_of, score_of
from tunesmith.recipe import dump_recipe, parse_recipe, recipe_hash
from tunesmith.recipe.overrides import resolve_paths
from tunesmith.recipe.schema import Recipe, Search
from tunesmith.recipe.spaces import by_loss, with_settings
from tunesmith.runs import RunFolder, list_runs, stage_key, staged_folder, write_text
from tunesmith.runs.lock import locked
from tunesmith.search.samplers import trials_of
from tunesmith.search.trials import Measured, Plan, Trial, Trials, best_of, read_trials, run_trials
from tunesmith.verdict.report_search import value_text

TRIALS = "trials"
BEST = "best.yaml"
"""The recipe with the best trial's settings, as it could be run by itself."""
_SEARCHED = "search_sha256"
_OF_TRIAL = ("run", "created", "status", "reached")
"""Sections of a trial's manifest that say nothing of the run that goes on with its training."""
_LEFT = ("manifest.json", ".lock", "checkpoints", "trunk", "stages")
"""What that run does not take over: what is needed only to go on training, and what is written otherwise."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    score_name: the metric, or `validation_loss`, by which trials were compared.
    recipe: the searched recipe with the best trial's settings.
    result: of the best recipe's run to the verdict; None where only trials were wanted.
    """

    folder: Path
    trials: Trials
    score_name: str
    recipe: Recipe
    result: Result | None

    @property
    def best(self) -> Trial:
        """The trial that was chosen."""
        return self.trials.best

    def to_dict(self) -> dict[str, Any]:
        """The object `tunesmith search --json` prints."""
        return {
            "folder": str(self.folder),
            "score": self.score_name,
            "direction": self.trials.direction,
            "asked": self.trials.asked,
            "ended": self.trials.ended,
            "best": self.best.number,
            "trials": [asdict(trial) for trial in self.trials.trials],
            "page": str(self.folder / "search.html"),
            "run": self.result.to_dict() if self.result is not None else None,
        }


def search_recipe(
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    new: bool = False,
    trials_only: bool = False,
    listener: Listener | None = None,
) -> Found:
    """Try the settings of a recipe's `search` section, and run the best of them to the verdict.

    A search that was interrupted goes on; one that is finished is read, and with more `search.trials` continued as long
    as its best was not yet run to the verdict.

    Parameters
    ----------
    out: folder of the search and of the best's run; without it, the newest of the same search, or a new folder.
    new: begin again in a new folder.
    trials_only: choose, and run nothing to the verdict.
    listener: hears every event of every run as a dict; those of a trial have its number under `trial`.

    Raises `RecipeError`, `DataError`, `ResourceError`, `EngineError` (every trial failed), `VerificationError`.
    """
    tell: Listener = listener if listener is not None else lambda event: None
    recipe = parse_recipe(resolve_paths(recipe.model_dump(), Path.cwd()))
    spec = _spec(recipe, trials_only)
    plan = Plan(
        spaces=spec.space,
        sampler=spec.sampler,
        direction=direction_of(recipe),
        trials=spec.trials,
        max_seconds=spec.max_seconds,
        seed=spec.seed,
    )
    trials_of(plan.sampler, plan.spaces, plan.trials)  # more than there are is refused before anything is written
    subject = _subject(recipe)
    folder = _folder(recipe, Path(out) if out is not None else None, new)
    record = folder.path / RECORD
    _refuse_after_verdict(folder, plan, record)
    tell({"kind": "note", "text": f"search in {folder.path}"})
    (folder.path / TRIALS).mkdir(exist_ok=True)
    with locked(folder.path / TRIALS / ".lock"):
        telling = _Telling(plan, tell, read_trials(record))
        trials = run_trials(
            plan,
            lambda number, values: _run_trial(recipe, folder, number, values, tell),
            record,
            subject=subject,
            listener=telling,
        )
        best = with_settings(recipe, trials.best.values)
        name = str(trials.best.facts[SCORED_BY])
        write_text(folder.path / BEST, dump_recipe(best))
        write_page(folder.path, trials_shown(folder.path), recipe.name or folder.name)
        tell({"kind": "note", "text": telling.chosen(trials, name)})
        if not trials_only:
            _take_over(folder, trials.best)
    if trials_only:
        folder.set_status("finished", verdict=f"search: trial {trials.best.number} of {len(trials.trials)} is best")
        return Found(folder.path, trials, name, best, None)
    return Found(folder.path, trials, name, best, run(best, out=folder.path, listener=listener))


def _spec(recipe: Recipe, trials_only: bool) -> Search:
    if recipe.search is None:
        raise RecipeError(
            "there is nothing to search",
            where="search",
            expected="search: {space: {train.learning_rate: {type: float, low: 1e-5, high: 1e-3, log: true}}}",
            fix="`tunesmith run` runs a recipe without a search",
        )
    if is_pairs(recipe) and not trials_only:
        raise RecipeError(
            "pairs of texts are trained and not evaluated, so there is no verdict to run the best to",
            where="data.columns.second",
            fix="add --trials-only",
        )
    if not recipe.train.evaluations:
        raise RecipeError(
            "trials are chosen by validation, which is never measured",
            where="train.evaluations",
            expected="at least 1",
        )
    return recipe.search


def _subject(recipe: Recipe) -> str:
    """Hash of what decides a trial beside its settings: the recipe, and the rows it learns and is chosen by.

    Raises what is wrong with the data, before any trial finds it out.
    """
    files = {p: source_sha256(s) for p in ("train", "validation") if (s := getattr(recipe.data, p)) is not None}
    held_out = 0
    if not is_pairs(recipe):
        rows = read_data(recipe)
        if any(finding.severity == "error" for finding in rows.findings):
            raise DataFindingsError(rows.findings)
        files = {part: rows.splits.hashes[part] for part in ("train", "validation")}
        held_out = len(rows.splits.validation)
        if not held_out:
            raise DataError(
                "there are no validation rows, so nothing can choose between trials",
                where="data.validation" if recipe.data.validation is not None else "data.split.validation",
                expected="at least one; some hundred tell small differences",
                fix="raise data.split.validation or name a file in data.validation",
            )
    asked = recipe.model_copy(update={"search": None})
    return stage_key(recipe=recipe_hash(asked), rows=files, files=named_files(recipe))


def _folder(recipe: Recipe, out: Path | None, new: bool) -> RunFolder:
    """The folder asked for, the newest one of the same search, or a new one."""
    sha = recipe_hash(_identity(recipe))
    if out is not None:
        if new and out.exists():
            raise RecipeError("--new with a folder that exists", where=str(out), fix="choose another folder")
        folder = RunFolder.create_at(out)
        if folder.manifest().get(_SEARCHED) is None and (folder.path / ASKED).is_file():
            raise RecipeError(
                "this folder holds a run that was not searched for", where=str(out), fix="choose another --out"
            )
    else:
        root = Path(recipe.output.dir)
        same = [] if new else [f for f in list_runs(root) if f.manifest().get(_SEARCHED) == sha]
        name = recipe.name or Path(recipe.data.train).stem.replace(" ", "-")
        folder = same[0] if same else RunFolder.create(root, f"{safe_name(name)}-search")
    folder.update_manifest(**{_SEARCHED: folder.manifest().get(_SEARCHED, sha)})
    return folder


def _identity(recipe: Recipe) -> Recipe:
    """The recipe without how long to search: that may be raised."""
    assert recipe.search is not None
    search = recipe.search.model_copy(update={"trials": None, "max_seconds": None})
    return recipe.model_copy(update={"search": search})


def _refuse_after_verdict(folder: RunFolder, plan: Plan, record: Path) -> None:
    """Another number of trials might choose otherwise than the run that was made of the best so far."""
    kept = read_trials(record)
    ended = plan.max_seconds is not None and sum(trial.seconds for trial in kept) >= plan.max_seconds
    count = trials_of(plan.sampler, plan.spaces, plan.trials)
    other = count < len(kept) or (count > len(kept) and not ended)
    if other and (folder.path / ASKED).is_file():
        raise RecipeError(
            f"the best of {len(kept)} trials was run here already, and a search of {count} may choose another",
            where=str(folder.path),
            fix="choose another --out, or search with --trials-only until there are enough",
        )


def _run_trial(recipe: Recipe, folder: RunFolder, number: int, values: Mapping[str, Any], tell: Listener) -> Measured:
    """Train a trial; one that was interrupted goes on. Raises `TunesmithError` where it fails."""
    path = folder.path / TRIALS / f"{number:03d}"
    try:
        result = run(
            with_settings(recipe, values), out=path, through="train", listener=lambda e: tell({**e, "trial": number})
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        said = str(error).splitlines()
        raise ResourceError(f"not enough memory{f': {said[0]}' if said else ''}", where=str(path)) from error
    finally:
        gc.collect()  # the trial's model; the next one is as large
    score = score_of(result.folder, recipe, result.recipe)
    training = result.training or {}
    facts = {
        SCORED_BY: score.name,
        "validation_loss": score.loss,
        "kept_step": score.step,
        **{key: training.get(key) for key in ("steps", "tokens", "stopped_early")},
    }
    tie = None if by_loss(recipe) else score.loss
    return Measured(score.value, tie, f"{TRIALS}/{number:03d}", facts)


def _take_over(folder: RunFolder, best: Trial) -> None:
    """Make the best trial's training that of the run in `folder`, unless that was done before."""
    if (folder.path / "stages" / "train.json").is_file():
        return
    trial = RunFolder.open(folder.path / str(best.folder))
    kept = {key: value for key, value in trial.manifest().items() if key not in _OF_TRIAL}
    for source in sorted(trial.path.iterdir()):
        target = folder.path / source.name
        if source.name in _LEFT:
            continue
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    folder.update_manifest(**kept, best_trial=best.number)
    with staged_folder(folder.stages) as stages:  # last, as it says that the training is there
        shutil.copytree(trial.stages, stages, dirs_exist_ok=True)


class _Telling:
    """Says in one line what each trial tries and what came of it."""

    def __init__(self, plan: Plan, tell: Listener, before: Sequence[Trial]) -> None:
        self._plan, self._tell = plan, tell
        self._trials = list(before)

    def __call__(self, event: dict[str, Any]) -> None:
        self._tell(event)
        if event["kind"] == "trial_started":
            said = ", ".join(f"{key} {value_text(value)}" for key, value in event["values"].items())
            self._tell({"kind": "note", "text": f"trial {event['number']}: {said}"})
        elif event["kind"] == "trial":
            trial = Trial(**{key: value for key, value in event.items() if key not in ("seq", "time", "kind")})
            self._trials.append(trial)
            self._tell({"kind": "note", "text": self._result(trial)})

    def _result(self, trial: Trial) -> str:
        if trial.state == "failed":
            return f"trial {trial.number} failed: {str(trial.error).splitlines()[0]}"
        best = best_of(self._trials, self._plan.direction)
        mark = " (best so far)" if best is trial else ""
        return f"trial {trial.number}: {score_text(trial, str(trial.facts[SCORED_BY]))}{mark}"

    @staticmethod
    def chosen(trials: Trials, name: str) -> str:
        """What was chosen, and of how many."""
        best = trials.best
        failed = sum(trial.state == "failed" for trial in trials.trials)
        rest = f", {failed} of them failed" if failed else ""
        return f"chosen by validation rows: trial {best.number} of {len(trials.trials)}{rest}, {score_text(best, name)}"


def score_text(trial: Trial, name: str) -> str:
    """A trial's score in words."""
    if trial.score is None:
        return "failed"
    label = "validation loss" if name == LOSS else name.replace("_", " ")
    return f"{label} {trial.score:.4f}"
