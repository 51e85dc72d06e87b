"""Azure's management calls for deployments, as its tutorial makes them."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.service.azure.serving import TUNED, tuned
from tunesmith.service.context import Service
from tunesmith.service.store.nouns import Checkpoint, Deployment

ACCOUNT = "/subscriptions/s1/resourceGroups/Group/providers/Microsoft.CognitiveServices/accounts/acc/deployments"
VERSION = {"api-version": "2024-10-01"}
BEARER = {"Authorization": "Bearer from-the-command-line"}


def body(model: str = TUNED, **model_fields: Any) -> dict[str, Any]:
    model_part = {"format": "OpenAI", "name": model, "version": "1", **model_fields}
    return {"sku": {"name": "standard", "capacity": 1}, "properties": {"model": model_part}}


def put(client: TestClient, name: str = "clippy", json: Any = None, path: str = ACCOUNT) -> Any:
    return client.put(f"{path}/{name}", params=VERSION, headers=BEARER, json=json or body())


def test_the_life_of_a_deployment(client: TestClient, service: Service) -> None:
    tuned(service)
    made = put(client)
    assert made.status_code == 201
    told = made.json()
    assert told["properties"]["provisioningState"] == "Creating"
    assert told["id"] == f"{ACCOUNT}/clippy" and told["name"] == "clippy"
    assert told["type"] == "Microsoft.CognitiveServices/accounts/deployments"
    assert told["sku"] == {"name": "standard", "capacity": 1}
    assert told["properties"]["model"] == {"format": "OpenAI", "name": TUNED, "version": "1"}

    read = client.get(f"{ACCOUNT}/clippy", params=VERSION, headers=BEARER)
    assert read.status_code == 200 and read.json()["properties"]["provisioningState"] == "Succeeded"

    again = put(client, json=body("gpt-4o-mini"))
    assert again.status_code == 200 and again.json()["properties"]["model"]["name"] == "gpt-4o-mini"

    listed = client.get(ACCOUNT, params=VERSION, headers=BEARER).json()
    assert [one["name"] for one in listed["value"]] == ["clippy"]

    gone = client.delete(f"{ACCOUNT}/clippy", params=VERSION, headers=BEARER)
    assert gone.status_code == 202 and gone.content == b""
    assert client.delete(f"{ACCOUNT}/clippy", params=VERSION, headers=BEARER).status_code == 204
    missing = client.get(f"{ACCOUNT}/clippy", params=VERSION, headers=BEARER)
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "ResourceNotFound"
    assert "accounts/acc/deployments/clippy" in missing.json()["error"]["message"]
    assert service.catalogue.model_of(TUNED).record is not None, "the model stays"


def test_names_of_azure_know_no_case(client: TestClient, service: Service) -> None:
    tuned(service)
    put(client, "Clippy")
    lower = ACCOUNT.replace("resourceGroups", "resourcegroups").replace("Group", "group")
    assert put(client, "CLIPPY", path=lower).status_code == 200
    assert client.get(f"{lower}/clippy", params=VERSION).json()["name"] == "Clippy"
    assert service.store.count(Deployment) == 1


def test_accounts_do_not_see_each_other(client: TestClient, service: Service) -> None:
    tuned(service)
    other = ACCOUNT.replace("/acc/", "/acc2/")
    put(client)
    assert client.get(other, params=VERSION).json() == {"value": []}
    assert put(client, path=other).status_code == 201


def test_a_checkpoint_can_be_deployed_by_its_id(client: TestClient, service: Service) -> None:
    name = f"{TUNED}:ckpt-step-90"
    tuned(service, name, kind="checkpoint", step=90)
    service.store.add(Checkpoint("ftchkpt-e559c011ecc04fc68eaa339d8227d02d", 3, "ftjob-1", name, 90, {}))
    assert put(client, json=body("ftchkpt-e559c011ecc04fc68eaa339d8227d02d")).status_code == 201
    assert service.catalogue.resolve("clippy").shown == name


def test_a_model_that_is_not_there_is_refused_in_azures_words(client: TestClient, service: Service) -> None:
    answer = put(client, json=body("gpt-4o-mini-2024-07-18.ft-nothing"))
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "DeploymentModelNotSupported"
    assert error["message"].startswith(
        "The model 'Format: OpenAI, Name: gpt-4o-mini-2024-07-18.ft-nothing, Version: 1' of account deployment is not"
    )
    assert "embedded:base" in error["message"], "it says what exists"
    assert service.store.count(Deployment) == 0


def test_a_deployment_cannot_be_made_of_a_deployment(client: TestClient, service: Service) -> None:
    tuned(service)
    put(client, "clippy")
    assert put(client, "second", json=body("clippy")).json()["error"]["code"] == "DeploymentModelNotSupported"


@pytest.mark.parametrize("name", ["x", "-a", "a-", "a" * 65, "a%20b", "a%0Ab", "..", "ü1"])
def test_a_name_that_azure_would_not_take(client: TestClient, service: Service, name: str) -> None:
    tuned(service)
    answer = client.put(f"{ACCOUNT}/{name}", params=VERSION, json=body())
    assert answer.status_code in (400, 404, 405)
    assert service.store.count(Deployment) == 0


@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_an_api_version_is_required(client: TestClient, method: str) -> None:
    answer = client.request(method, f"{ACCOUNT}/clippy", json=body() if method == "put" else None)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "MissingApiVersionParameter"
    assert error["message"] == "The api-version query parameter (?api-version=) is required for all requests."


@pytest.mark.parametrize(
    ("json", "target"),
    [
        ({}, "properties"),
        ({"properties": {}}, "properties.model"),
        ({"properties": {"model": {}}}, "properties.model.name"),
        ({"properties": {"model": {"name": 3}}}, "properties.model.name"),
        ({"properties": {"model": {"name": "gpt-4o"}}, "sku": {"capacity": -1}}, "sku.capacity"),
        ([], None),
    ],
)
def test_what_is_missing_is_named(client: TestClient, json: Any, target: str | None) -> None:
    answer = client.put(f"{ACCOUNT}/clippy", params=VERSION, json=json)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "invalidPayload" and error["target"] == target


def test_what_azures_tools_send_beside_is_kept_and_told_again(client: TestClient, service: Service) -> None:
    tuned(service)
    sent = body(publisher="OpenAI", source="/subscriptions/s2/x")
    sent["properties"]["raiPolicyName"] = "Microsoft.Default"
    sent |= {"tags": {"a": "b"}, "etag": "1", "id": "/x", "systemData": {}}
    put(client, json=sent)
    told = client.get(f"{ACCOUNT}/clippy", params=VERSION).json()["properties"]
    assert told["raiPolicyName"] == "Microsoft.Default" and told["model"]["source"] == "/subscriptions/s2/x"
    # What was read can be sent back; the state in it is ours to say.
    assert (
        put(client, json={"sku": sent["sku"], "properties": {**told, "provisioningState": "Nonsense"}}).status_code
        == 200
    )
    assert client.get(f"{ACCOUNT}/clippy", params=VERSION).json()["properties"]["provisioningState"] == "Succeeded"


def test_a_model_that_cannot_be_loaded_fails_with_its_reason(client: TestClient, service: Service) -> None:
    tuned(service, base="embedded:missing")
    assert put(client).status_code == 201
    told = client.get(f"{ACCOUNT}/clippy", params=VERSION).json()["properties"]
    assert told["provisioningState"] == "Failed" and told["statusMessage"] == "there is no such model"
    # Deploying something else over it mends it.
    tuned(service, TUNED + "-2")
    put(client, json=body(TUNED + "-2"))
    told = client.get(f"{ACCOUNT}/clippy", params=VERSION).json()["properties"]
    assert told["provisioningState"] == "Succeeded" and "statusMessage" not in told


def test_one_left_creating_by_a_server_that_died_is_settled_when_it_is_read(
    client: TestClient, service: Service
) -> None:
    tuned(service)
    properties = {"model": {"format": "OpenAI", "name": TUNED}, "provisioningState": "Creating"}
    service.store.add(Deployment("s1/group/acc/clippy", 3, "clippy", TUNED, {}, properties))
    states = [client.get(f"{ACCOUNT}/clippy", params=VERSION).json()["properties"]["provisioningState"] for _ in "12"]
    assert states == ["Creating", "Succeeded"]
