"""Which projects may use a checkpoint: kept and shown as OpenAI does, where an organisation shares models.

Here there is one project, so nothing is held back by them; keys and their scopes say who may ask.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.service.context import Service
from tunesmith.service.errors import not_found
from tunesmith.service.ids import new_id
from tunesmith.service.store.interface import Found, Page
from tunesmith.service.store.nouns import Checkpoint, Model, Permission


def allow(service: Service, checkpoint: str, projects: Sequence[str]) -> list[Permission]:
    """A permission for each project; those there are already stay as they are. Raises `ApiError` 404."""
    _require(service, checkpoint)
    known = {one.project_id: one for one in service.store.all(Permission, {"checkpoint": checkpoint})}
    wanted = list(dict.fromkeys(projects))
    made = [
        Permission(new_id("cp", separator="_"), service.now(), checkpoint, project)
        for project in wanted
        if project not in known
    ]
    service.store.add_all(made)
    known |= {one.project_id: one for one in made}
    return [known[project] for project in wanted]


def list_permissions(service: Service, checkpoint: str, page: Page, project: str | None = None) -> Found[Permission]:
    """Those of a checkpoint, of one project where it is named. Raises `ApiError` 404."""
    _require(service, checkpoint)
    where = {"checkpoint": checkpoint} | ({"project_id": project} if project is not None else {})
    return service.store.page(Permission, page, where=where)


def disallow(service: Service, checkpoint: str, id: str) -> None:
    """Raises `ApiError` 404 where there is no such permission of this checkpoint."""
    _require(service, checkpoint)
    found = service.store.get(Permission, id)
    if found is None or found.checkpoint != checkpoint:
        raise not_found("checkpoint permission", id[:128])
    service.store.remove(Permission, id)


def _require(service: Service, checkpoint: str) -> None:
    """A checkpoint is found by its name or its id, a tuned model by its name."""
    store = service.store
    if not (
        store.count(Checkpoint, {"name": checkpoint})
        or store.count(Checkpoint, {"id": checkpoint})
        or store.count(Model, {"id": checkpoint})
    ):
        raise not_found("checkpoint", checkpoint[:256], param="fine_tuned_model_checkpoint")
