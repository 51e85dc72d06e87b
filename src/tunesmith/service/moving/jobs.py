"""A job as a recipe: its rows, its settings, and everything that was told of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.recipe.schema import Recipe
from tunesmith.runs.atomic import write_bytes, write_json, write_text
from tunesmith.service.jobs.recipe import recipe_of, settled, twin_recipe_of
from tunesmith.service.jobs.request import AUTO, MethodType
from tunesmith.service.jobs.rules import Checked, check_files
from tunesmith.service.moving.exported import ExportedJob, results_csv
from tunesmith.service.moving.prices import Cost, cost_there
from tunesmith.service.moving.recipe_text import RECIPE, recipe_name, recipe_text
from tunesmith.service.store.nouns import Job

TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"
TWIN = "twin.yaml"
_METHODS: Mapping[str, MethodType] = {"supervised": "supervised", "dpo": "dpo", "reinforcement": "reinforcement"}
_NAMES = ("n_epochs", "batch_size", "learning_rate_multiplier")


@dataclass(frozen=True, slots=True)
class MovedJob:
    """What became of a job: what it was, what it is here, what it cost there.

    `losses` are the last training and validation loss that were told. `recipe` says what was written: `same` (the
    settings there, on the rows there), `none`.
    """

    id: str
    name: str
    folder: str
    model: str
    tuned: str | None
    method: str
    status: str
    created_at: int
    settings: Mapping[str, Any]
    trained_tokens: int | None
    steps: int
    checkpoints: int
    losses: Mapping[str, float]
    rows: int
    held_out: int
    here: Mapping[str, Any]
    cost: Cost
    recipe: bool
    twin: bool
    notes: tuple[str, ...] = field(default=())


def move_job(one: ExportedJob, folder: Path, place: str, base: str, parameters: int) -> MovedJob:
    """Write a job's folder. `parameters` of the base decide its usual learning rate."""
    told = one.told
    notes: list[str] = []
    _keep_original(one, folder / "original", notes)
    method = str((told.get("method") or {}).get("type") or "supervised")
    training = _copied(one.training, folder / TRAIN, f"training file {told.get('training_file')}", notes)
    wanted = told.get("validation_file")
    validation = _copied(one.validation, folder / VALIDATION, f"validation file {wanted}", notes) if wanted else None
    checked = _checked(one, training, validation, _METHODS.get(method, "supervised"), notes)
    job, recipe, twin = None, None, None
    if training is not None and checked is not None and checked.kind is not None and method == "supervised":
        job = _settled(one, checked, base, parameters)
        try:
            recipe = recipe_of(job, training, validation, base)
            if recipe.data.test is None:
                twin = twin_recipe_of(job, training, base)
        except TunesmithError as error:
            notes.append(f"no recipe: {error.what}")
    elif method != "supervised":
        notes.append(f"no recipe: jobs of the method {method} are not trained here; their rows stand beside")
    name = job_name(told)
    if recipe is not None:
        write_text(folder / RECIPE, _text(recipe, name, told))
    if twin is not None:
        write_text(folder / TWIN, _text(twin, f"{name}-twin", told))
    return MovedJob(
        one.id,
        name,
        place,
        str(told.get("model")),
        told.get("fine_tuned_model"),
        method,
        str(told.get("status")),
        int(told.get("created_at") or 0),
        _settings(told),
        told.get("trained_tokens"),
        _steps(one.events),
        len(one.checkpoints),
        _losses(one.events),
        checked.training_rows if checked else 0,
        checked.validation_rows if checked else 0,
        _here(job),
        cost_there(told, _started(one.events)),
        recipe is not None,
        twin is not None,
        tuple(notes),
    )


def job_name(told: Mapping[str, Any]) -> str:
    """A name for a job's folder and recipe: its suffix or model, and the end of its id."""
    suffix = told.get("user_provided_suffix") or told.get("suffix")
    return recipe_name(str(suffix or told.get("model") or "job"), str(told.get("id")))


def _keep_original(one: ExportedJob, folder: Path, notes: list[str]) -> None:
    write_json(folder / "job.json", one.told)
    write_json(folder / "events.json", list(one.events))
    write_json(folder / "checkpoints.json", list(one.checkpoints))
    if one.results is None:
        if one.told.get("result_files"):
            notes.append("the result file is not in the export")
        return
    csv = results_csv(one.results)
    if csv is None:
        notes.append(f"the result file {one.results.name} is neither CSV nor CSV in base64: kept as it is")
        shutil.copyfile(one.results, folder / f"results{one.results.suffix or '.bin'}")
    else:
        write_bytes(folder / "results.csv", csv)


def _copied(source: Path | None, target: Path, what: str, notes: list[str]) -> Path | None:
    if source is None:
        notes.append(f"the {what} is not in the export")
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def _checked(
    one: ExportedJob, training: Path | None, validation: Path | None, method: MethodType, notes: list[str]
) -> Checked | None:
    if training is None:
        return None
    checked = check_files(
        training,
        validation,
        training_id=str(one.told.get("training_file")),
        validation_id=str(one.told.get("validation_file")),
        method=method,
    )
    notes += [fault.told() for fault in checked.faults]
    return checked


def _settled(one: ExportedJob, checked: Checked, base: str, parameters: int) -> Job:
    """The job as one of ours, with a number for every setting: those it had, and ours where it says `auto`."""
    told = one.told
    job = Job(
        id=one.id,
        created_at=int(told.get("created_at") or 0),
        model=str(told.get("model")),
        base=base,
        training_file=str(told.get("training_file")),
        validation_file=told.get("validation_file"),
        status="validating_files",
        seed=int(told.get("seed") or 0),
        organization_id="",
        method={},
        hyperparameters={**dict.fromkeys(_NAMES, AUTO), **_settings(told)},
    )
    return replace(job, **settled(job, checked, parameters))


def _settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a job's hyperparameters, wherever it has them; Azure's -1 is none."""
    method = told.get("method") or {}
    inner = (method.get(method.get("type")) or {}).get("hyperparameters") or {}
    both = {**(told.get("hyperparameters") or {}), **inner}
    return {
        name: both[name]
        for name in _NAMES
        if isinstance(both.get(name), int | float) and not isinstance(both[name], bool) and both[name] > 0
    }


def _text(recipe: Recipe, name: str, told: Mapping[str, Any]) -> str:
    """The recipe beside its rows."""
    data = recipe.data
    beside = {
        part: Path(str(path)).name
        for part in ("train", "validation", "test")
        if (path := getattr(data, part)) is not None
    }
    moved = recipe.model_copy(update={"name": name, "data": data.model_copy(update=beside)})
    day = datetime.fromtimestamp(int(told.get("created_at") or 0), UTC).date()
    tuned = told.get("fine_tuned_model") or "nothing"
    return recipe_text(moved, f"{told.get('id')} of {day}, which tuned {told.get('model')} into {tuned}.")


def _here(job: Job | None) -> dict[str, Any]:
    if job is None:
        return {}
    shown = ("base", "method", "rank", "learning_rate", "total_steps")
    return {**dict(job.hyperparameters), **{name: job.resolved[name] for name in shown}}


def _steps(events: Sequence[Mapping[str, Any]]) -> int:
    return max((int(_data(event).get("step") or 0) for event in events), default=0)


def _losses(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last of each loss that the events told."""
    found: dict[str, float] = {}
    for event in events:
        for name in ("train_loss", "valid_loss", "full_valid_loss"):
            value = _data(event).get(name)
            if isinstance(value, int | float):
                found[name] = float(value)
    return found


def _started(events: Sequence[Mapping[str, Any]]) -> int | None:
    return next(
        (
            int(event["created_at"])
            for event in events
            if str(event.get("message")).endswith(("job started", "started."))
        ),
        None,
    )


def _data(event: Mapping[str, Any]) -> Mapping[str, Any]:
    data = event.get("data")
    return data if isinstance(data, Mapping) else {}
