"""Azure's deployments: a name of one's own for a model. Nothing is rented here, and nothing is deleted unasked.

A deployment is `Creating` until its model has been brought into memory once, and `Failed`, with the reason, where that
is not possible; whoever asks meanwhile is answered all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool

from tunesmith.errors import TunesmithError
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.store.nouns import Deployment

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}[A-Za-z0-9]")
"""A deployment's name: 2 to 64 letters, digits, hyphens, dots and underscores."""


@dataclass(frozen=True, slots=True)
class Account:
    """The account that a deployment belongs to, as its path names it. Any can be named; all of them are this server."""

    subscription: str
    group: str
    name: str

    @property
    def path(self) -> str:
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"
            f"/providers/Microsoft.CognitiveServices/accounts/{self.name}"
        )

    def id(self, deployment: str = "") -> str:
        """Key in the store: Azure's names do not distinguish cases."""
        return "/".join((self.subscription, self.group, self.name, deployment)).lower()


def put_deployment(
    service: Service, account: Account, name: str, sku: Mapping[str, Any], properties: Mapping[str, Any]
) -> tuple[Deployment, bool]:
    """Create a deployment, or change the one of this name; the second value says whether it is new.

    `properties.model.name` is a tuned model, a checkpoint (by name or id) or a base. Raises `ApiError` 400 with Azure's
    codes.
    """
    if not NAME.fullmatch(name):
        raise ApiError(
            400,
            f"The deployment name '{name[:80]}' is not valid: expected 2 to 64 letters, digits, hyphens, dots and "
            "underscores, a letter or digit first and last.",
            param="deploymentName",
            code="InvalidResourceName",
        )
    model = properties["model"]
    try:
        # Under its own name, however it was asked for: a checkpoint's id becomes the checkpoint's name.
        found = service.catalogue.model_of(model["name"])
    except ApiError as error:
        raise ApiError(
            400,
            f"The model 'Format: {model['format']}, Name: {model['name']}, Version: {model.get('version', '')}' of "
            f"account deployment is not supported. {error.message}",
            param="properties.model",
            code="DeploymentModelNotSupported",
        ) from error
    target = found.record.id if found.record else model["name"]
    kept = {**properties, "provisioningState": "Creating"}
    id = account.id(name)
    made = Deployment(id, service.now(), name, target, dict(sku), kept)
    while True:
        try:
            service.store.add(made)
        except ValueError:
            # There is one of this name, of whatever writing; it keeps its age, unless it is deleted in this moment.
            changed = service.store.update(Deployment, id, model=target, sku=made.sku, properties=kept)
            if changed is not None:
                return changed, False
        else:
            return made, True


async def settle(service: Service, deployment: Deployment) -> Deployment:
    """Bring a deployment's model into memory, and keep how that ended as its `provisioningState`."""
    state: dict[str, Any] = {"provisioningState": "Succeeded"}
    try:
        found = await run_in_threadpool(service.catalogue.model_of, deployment.model)
        if service.engine is not None:
            await service.engine.load(found.ref)
    except (ApiError, TunesmithError) as error:
        reason = error.message if isinstance(error, ApiError) else error.what
        state = {"provisioningState": "Failed", "statusMessage": reason}
    before = {key: value for key, value in deployment.properties.items() if key != "statusMessage"}
    settled = replace(deployment, properties={**before, **state})

    def keep() -> None:
        now = service.store.get(Deployment, deployment.id)
        # One that was changed or deleted meanwhile is settled by whoever did that.
        if now == deployment:
            service.store.update(Deployment, deployment.id, properties=settled.properties)

    await run_in_threadpool(keep)
    return settled


def get_deployment(service: Service, account: Account, name: str) -> Deployment:
    """Raises `ApiError` 404 in Azure's words."""
    found = service.store.get(Deployment, account.id(name))
    if found is None:
        raise ApiError(
            404,
            f"The Resource 'Microsoft.CognitiveServices/accounts/{account.name}/deployments/{name}' under resource "
            f"group '{account.group}' was not found.",
            param="deploymentName",
            code="ResourceNotFound",
        )
    return found


def list_deployments(service: Service, account: Account) -> list[Deployment]:
    """Those of one account, oldest first."""
    prefix = account.id()
    return [one for one in service.store.all(Deployment) if one.id.startswith(prefix)]


def delete_deployment(service: Service, account: Account, name: str) -> bool:
    """Whether there was one. Its model stays."""
    return service.store.remove(Deployment, account.id(name))
