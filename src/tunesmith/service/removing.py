"""Taking a tuned model away: its record first, then its weights, and nothing that anybody still uses."""

from __future__ import annotations

import logging
import secrets
import shutil
from pathlib import Path

from tunesmith.service.catalogue import shown_base
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.store.nouns import Deployment, Job, Model

_log = logging.getLogger(__name__)

LIVING = ("validating_files", "queued", "running", "paused")
"""States of a job that has not ended."""


def remove_model(service: Service, name: str) -> Model:
    """Delete a tuned model or checkpoint for good; the files that its job produced stay.

    Raises `ApiError`: 404 for a name that means nothing, 403 for a base, 400 while a deployment or a job uses it.
    """
    found = service.catalogue.model_of(name)
    model = found.record
    if model is None:
        raise ApiError(
            403,
            f"You have insufficient permissions to delete the model '{name}'. Only tuned models can be deleted; this "
            f"name stands for {shown_base(found.ref.base)} in the server's configuration.",
            param="model",
            code="insufficient_permissions",
        )
    users = _users(service, model)
    if users:
        raise ApiError(
            400,
            f"The model '{name}' cannot be deleted while it is used: by {', '.join(users)}. Delete or end that first.",
            param="model",
            code="model_in_use",
        )
    service.store.remove(Model, model.id)
    if service.engine is not None:
        service.engine.forget(service.catalogue.ref_of(model))
    others = service.store.all(Model)
    if model.adapter and not any(one.adapter == model.adapter for one in others):
        _remove_folder(service.settings.home, model.adapter)
    # A base of our own making: what an earlier tuned model was merged into. Jobs and their evidence may still load it.
    if not any(one.base == model.base for one in others) and not _work_goes_on(service):
        _remove_folder(service.settings.home, model.base)
    return model


def _users(service: Service, model: Model) -> list[str]:
    deployments = service.store.all(Deployment, {"model": model.id})
    jobs = service.store.all(Job, {"model": model.id, "status": LIVING})
    return [f"deployment {one.name}" for one in deployments] + [f"job {one.id}" for one in jobs]


def _work_goes_on(service: Service) -> bool:
    proving = {"status": "succeeded", "evidence": ["pending", "running"]}
    return service.store.count(Job, {"status": LIVING}) > 0 or service.store.count(Job, proving) > 0


def _remove_folder(home: Path, kept: str) -> None:
    """Remove a folder of weights, if it lies under `home/models`: what is a hub id or lies elsewhere is not ours."""
    models = (home / "models").resolve()
    folder = (home / kept).resolve()
    if models not in folder.parents or not folder.is_dir():
        return
    # Renamed first, so that nobody ever sees half of an adapter.
    gone = folder.with_name(f".removed-{secrets.token_hex(8)}")
    try:
        folder.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        _log.warning("weights of a deleted model could not all be removed from %s: %s", gone, error)
