"""Azure's management API as far as deployments go: create or change, read, list and delete them.

Code written for `https://management.azure.com` changes that host and nothing else. Subscription, resource group and
account can be any: all of them are this server.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from tunesmith.service import deploying
from tunesmith.service.context import Service, service_of
from tunesmith.service.deploying import Account
from tunesmith.service.errors import ApiError
from tunesmith.service.store.nouns import Deployment

TYPE = "Microsoft.CognitiveServices/accounts/deployments"
_ACCOUNT = "/providers/Microsoft.CognitiveServices/accounts/{account}/deployments"
_ROOT = "/subscriptions/{subscription}/resourceGroups/{group}" + _ACCOUNT
_LOWER = "/subscriptions/{subscription}/resourcegroups/{group}" + _ACCOUNT
"""Azure takes both spellings, and its tools write both."""


def versioned(api_version: Annotated[str | None, Query(alias="api-version", max_length=64)] = None) -> None:
    """Any api-version will do, but as at Azure there has to be one."""
    if not api_version:
        raise ApiError(
            400,
            "The api-version query parameter (?api-version=) is required for all requests.",
            param="api-version",
            code="MissingApiVersionParameter",
        )


router = APIRouter(dependencies=[Depends(versioned)], tags=["azure management"])
_Service = Annotated[Service, Depends(service_of)]


def account_of(subscription: str, group: str, account: str) -> Account:
    """The account that a path names."""
    return Account(subscription, group, account)


_Account = Annotated[Account, Depends(account_of)]


class Sku(BaseModel):
    """Size and price class; kept and told, and otherwise without meaning here: nothing is rented."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("Standard", max_length=64)
    capacity: int | None = Field(None, ge=0)


class DeployedModel(BaseModel):
    # Whatever else Azure's tools send (publisher, source, …) is kept and told again.
    model_config = ConfigDict(extra="allow")

    format: str = Field("OpenAI", max_length=64)
    name: str = Field(min_length=1, max_length=512)
    version: str | None = Field(None, max_length=64)


class Properties(BaseModel):
    # As above: versionUpgradeOption, raiPolicyName, scaleSettings, …
    model_config = ConfigDict(extra="allow")

    model: DeployedModel


class DeploymentBody(BaseModel):
    # A tool may send back what it has read, with id, etag and systemData in it.
    model_config = ConfigDict(extra="allow")

    sku: Sku = Field(default_factory=Sku)
    properties: Properties


def deployment_body(account: Account, made: Deployment) -> dict[str, Any]:
    """The resource as Azure tells it."""
    at = datetime.fromtimestamp(made.created_at, UTC).isoformat().replace("+00:00", "Z")
    return {
        "id": f"{account.path}/deployments/{made.name}",
        "type": TYPE,
        "name": made.name,
        "sku": dict(made.sku),
        "properties": {"capabilities": {"chatCompletion": "true", "completion": "true"}, **made.properties},
        "systemData": {"createdAt": at, "createdByType": "User"},
    }


@router.put(_ROOT + "/{deployment}", status_code=201, responses={200: {"description": "It was there, and is changed."}})
@router.put(_LOWER + "/{deployment}", status_code=201, include_in_schema=False)
async def put_deployment(
    deployment: str,
    body: DeploymentBody,
    account: _Account,
    service: _Service,
    response: Response,
    after: BackgroundTasks,
) -> dict[str, Any]:
    """Create a deployment (201), or change the one of this name (200)."""
    made, new = await run_in_threadpool(
        deploying.put_deployment,
        service,
        account,
        deployment,
        body.sku.model_dump(exclude_none=True),
        body.properties.model_dump(exclude_none=True),
    )
    response.status_code = 201 if new else 200
    after.add_task(deploying.settle, service, made)
    return deployment_body(account, made)


@router.get(_ROOT + "/{deployment}")
@router.get(_LOWER + "/{deployment}", include_in_schema=False)
async def get_deployment(
    deployment: str, account: _Account, service: _Service, after: BackgroundTasks
) -> dict[str, Any]:
    """One deployment; `properties.provisioningState` goes from Creating to Succeeded, or Failed with a reason."""
    found = await run_in_threadpool(deploying.get_deployment, service, account, deployment)
    if found.properties["provisioningState"] == "Creating":
        # The server that was to load it may have been stopped meanwhile.
        after.add_task(deploying.settle, service, found)
    return deployment_body(account, found)


@router.get(_ROOT)
@router.get(_LOWER, include_in_schema=False)
def list_deployments(account: _Account, service: _Service) -> dict[str, Any]:
    """Every deployment of the account, on one page."""
    found = deploying.list_deployments(service, account)
    return {"value": [deployment_body(account, one) for one in found]}


@router.delete(
    _ROOT + "/{deployment}",
    status_code=202,
    response_class=Response,
    responses={204: {"description": "There is none."}},
)
@router.delete(_LOWER + "/{deployment}", status_code=202, include_in_schema=False)
def delete_deployment(deployment: str, account: _Account, service: _Service) -> Response:
    """Delete a deployment: 202, or 204 where there is none. Its model stays, and can be deployed again."""
    there = deploying.delete_deployment(service, account, deployment)
    return Response(status_code=202 if there else 204)
