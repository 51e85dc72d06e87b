"""The end of a training that went well: models that answered, files to take away, and one transaction that shows all.

Until that transaction the job is running, and a worker that is killed leaves folders that the next one finds or
overwrites; after it everything is there, the job's last events included.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.pipeline.opening import tuned_folder
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.snapshots import snapshot_steps, write_snapshots
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder
from tunesmith.service.ids import azure_id, new_id
from tunesmith.service.jobs import events
from tunesmith.service.jobs.bases import adapter_facts
from tunesmith.service.jobs.events import METRICS
from tunesmith.service.jobs.names import new_checkpoint_name, new_tuned_name
from tunesmith.service.jobs.results import encoded, results_name, results_of
from tunesmith.service.store.nouns import Checkpoint, Event, File, Job, Model
from tunesmith.service.worker.desk import Desk
from tunesmith.service.worker.products import ADAPTER_ZIP, archive, place_model, require_answer


def finish(desk: Desk, result: Result) -> None:
    """Make the job succeed: its model answers under its name, and so do those of the ends of earlier epochs.

    Raises `EngineError` or `VerificationError` where a model does not answer.
    """
    job, facts, recipe = desk.job(), dict(result.training or {}), result.recipe
    last = int(facts["steps"])
    told = desk.store.all(Event, {"job_id": job.id})
    known = {one.step for one in desk.store.all(Checkpoint, {"job_id": job.id})}  # those of a job that was paused
    earlier = [step for step in snapshot_steps(result.folder) if step < last and step not in known]
    folders = {**write_snapshots(recipe, result.folder, earlier), last: tuned_folder(result.folder)}
    places = {step: place_model(desk, step, folder) for step, folder in folders.items()}
    for place in places.values():
        require_answer(recipe, desk.settings.home / place)
    files = _files(desk, job, told, folders[last])
    named = replace(job, fine_tuned_model=new_tuned_name(job))
    models = [_model(named, recipe, str(named.fine_tuned_model), "tuned", last, places[last])]
    checkpoints = [_checkpoint(named, step, told) for step in earlier]
    models += [_model(named, recipe, one.name, "checkpoint", one.step, places[one.step]) for one in checkpoints]
    itself = replace(_checkpoint(named, last, told), name=str(named.fine_tuned_model))
    drafts = [
        *(events.checkpoint_made(one.step, one.name) for one in checkpoints),
        events.model_made(str(named.fine_tuned_model)),
        *(events.results_made(file.id) for file in files[:1] if job.flavour == "azure"),
        events.succeeded(),
    ]
    moment = int(time.time())
    desk.write(
        add=[*files, *models, *checkpoints, itself],  # the newest of the checkpoints is the tuned model
        events=[desk.event(draft, f"end/{number}", moment) for number, draft in enumerate(drafts)],
        only_from=["running"],
        status="succeeded",
        fine_tuned_model=named.fine_tuned_model,
        finished_at=moment,
        trained_tokens=int(facts["tokens"]),
        result_files=tuple(file.id for file in files),
        resolved={**job.resolved, **_learnt(result, facts)},
        estimated_finish=None,
        wish=None,
    )


def checkpoint_at(desk: Desk, step: int) -> list[Checkpoint | Model]:
    """The model of a step at which the job stopped, with its record: both are still to be added.

    Nothing where there is one of that step already. Raises what `finish` does.
    """
    job, folder = desk.job(), RunFolder.open(desk.run)
    if any(one.step == step for one in desk.store.all(Checkpoint, {"job_id": job.id})):
        return []
    recipe = load_recipe(folder.recipe_file)
    place = place_model(desk, step, write_snapshots(recipe, folder, [step])[step])
    require_answer(recipe, desk.settings.home / place)
    record = _checkpoint(job, step, desk.store.all(Event, {"job_id": job.id}))
    return [record, _model(job, recipe, record.name, "checkpoint", step, place)]


def _files(desk: Desk, job: Job, told: tuple[Event, ...], adapter: Path) -> list[File]:
    """The numbers of every step, which clients expect first, and the model."""
    csv = encoded(results_of(told, job.flavour), job, desk.settings.results_encoding)
    return [desk.result_file(results_name(job.flavour), csv), archive(desk, adapter, ADAPTER_ZIP)]


def _learnt(result: Result, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the training only now."""
    steps = int(facts["steps"])  # fewer than were planned where rows were left out as too long
    planned = {"total_steps": steps, "steps_per_epoch": steps // int(float(result.recipe.train.epochs))}
    kept = {name: facts[name] for name in ("tokens", "supervised_tokens", "seconds", "adapter_sha256") if name in facts}
    layers = adapter_facts(result.folder.adapter) if result.folder.adapter.is_dir() else {}
    return {**layers, **planned, **kept}


def _model(job: Job, recipe: Recipe, name: str, kind: str, step: int, place: str) -> Model:
    return Model(
        id=name,
        created_at=int(time.time()),
        owned_by=job.organization_id,
        kind=kind,
        base=recipe.base.model,
        adapter=place,
        chat_template=recipe.base.chat_template,
        job_id=job.id,
        step=step,
        root=(job.fine_tuned_model if kind == "checkpoint" else None) or job.model,
    )


def _checkpoint(job: Job, step: int, told: tuple[Event, ...]) -> Checkpoint:
    """The record of an earlier step, with the numbers that were told of it."""
    told_of = [e.data or {} for e in told if e.type == "metrics" and (e.data or {}).get("step") == step]
    metrics = {name: told_of[0][name] for name in METRICS if name in told_of[0]} if told_of else {"step": step}
    return Checkpoint(
        id=azure_id("ftchkpt") if job.flavour == "azure" else new_id("ftckpt", separator="_"),
        created_at=int(time.time()),
        job_id=job.id,
        name=new_checkpoint_name(job, step),
        step=step,
        metrics=metrics,
    )
