"""Taking a tuned model away: its record first, then its weights, and nothing that anybody still uses."""

from __future__ import annotations

import logging
import secrets
import shutil
from pathlib import Path

from tunesmith.inference.serving.types import ModelRef
from tunesmith.service.catalogue import shown_base
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.jobs.lifecycle import FINAL
from tunesmith.service.store.nouns import Deployment, Job, Model

_log = logging.getLogger(__name__)


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
    home = service.settings.home
    if service.engine is not None:
        adapter = home / model.adapter if model.adapter else None
        service.engine.forget(ModelRef(model.base, adapter, model.chat_template, model.engine))
    others = service.store.all(Model)
    for kept in (model.adapter, model.base):
        if kept and not any(kept in (one.adapter, one.base) for one in others):
            _remove_folder(home, kept)
    return model


def _users(service: Service, model: Model) -> list[str]:
    deployments = service.store.all(Deployment, {"model": model.id})
    jobs = [one for one in service.store.all(Job, {"model": model.id}) if one.status not in FINAL]
    return [f"deployment {one.name}" for one in deployments] + [f"job {one.id}" for one in jobs]


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
