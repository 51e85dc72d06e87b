"""`/models`: listing, reading and deleting, raw and percent-encoded names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from tests.service.azure.serving import make_service, tuned
from tests.service.scripted import ScriptedEngine
from tunesmith.service.app import make_app
from tunesmith.service.context import Service
from tunesmith.service.settings import OPENAI_NAMES
from tunesmith.service.store.nouns import Deployment, Job, Model

NAME = "ft:gpt-4o-mini-2024-07-18:tunesmith:recipe-ner:9o1eNlSa"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = make_service(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service), base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as made:
        yield made


def test_every_field_of_a_tuned_model(client: TestClient, service: Service) -> None:
    tuned(service, NAME, job_id="ftjob-1", step=303)
    assert client.get(f"/v1/models/{NAME}").json() == {
        "id": NAME,
        "object": "model",
        "created": 5,
        "owned_by": "tunesmith",
        "shutdown_date": None,
        "tunesmith": {"base": "embedded:base", "kind": "tuned", "job": "ftjob-1", "step": 303},
    }


@pytest.mark.parametrize("root", ["/v1", "/openai/v1"])
@pytest.mark.parametrize("name", [NAME, f"{NAME}:ckpt-step-101", "org/small", "embedded:base", "gpt-4o-mini"])
def test_names_come_raw_and_percent_encoded(tmp_path: Path, root: str, name: str) -> None:
    service = make_service(tmp_path, aliases={"gpt-4o-mini": "embedded:base", "small": "org/small"})
    if name.startswith("ft:"):
        tuned(service, name)
    with TestClient(make_app(service), base_url="http://127.0.0.1:8000") as client:
        for path in (name, quote(name, safe=""), quote(name, safe="/")):
            answer = client.get(f"{root}/models/{path}")
            assert answer.status_code == 200 and answer.json()["id"] == name
    service.store.close()


def test_the_list_holds_tuned_models_and_every_name_of_old_code(client: TestClient, service: Service) -> None:
    tuned(service, NAME)
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    names = [one["id"] for one in listed["data"]]
    assert {NAME, *OPENAI_NAMES, "embedded:base"} <= set(names) and len(names) == len(set(names))
    assert all(one["object"] == "model" and one["shutdown_date"] is None for one in listed["data"])


def test_no_folder_of_the_machine_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "hidden" / "mine"
    folder.mkdir(parents=True)
    service = make_service(tmp_path / "home", aliases={"mine": str(folder)})
    with TestClient(make_app(service), base_url="http://127.0.0.1:8000") as client:
        assert client.get("/v1/models/mine").json()["tunesmith"] == {"base": "mine", "kind": "registered"}
        texts = [client.get("/v1/models").text, client.delete("/v1/models/mine").text, client.get("/v1/models/x").text]
        assert not any("hidden" in text for text in texts)
    service.store.close()


@pytest.mark.parametrize("name", ["gpt-9", "ft:gpt-4o:x::y", "..%2f..%2fstore.sqlite", "%2Fetc%2Fpasswd", "a%20b"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_model(client: TestClient, method: str, name: str) -> None:
    answer = client.request(method, f"/v1/models/{name}")
    error = answer.json()["error"]
    assert answer.status_code == 404
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
    assert "does not exist or you do not have access to it." in error["message"]


def test_deleting_takes_the_model_its_weights_and_its_place_in_memory(client: TestClient, service: Service) -> None:
    model, kept = tuned(service, NAME), tuned(service, f"{NAME}:ckpt-step-101", kind="checkpoint")
    home = service.settings.home
    assert client.delete(f"/v1/models/{quote(NAME, safe='')}").json() == {
        "id": NAME,
        "object": "model",
        "deleted": True,
    }
    assert not (home / str(model.adapter)).exists() and (home / str(kept.adapter)).is_dir()
    assert [one.name for one in (home / "models").iterdir()] == [Path(str(kept.adapter)).name], "nothing is left"
    engine = service.engine
    assert isinstance(engine, ScriptedEngine) and [one.adapter for one in engine.forgotten] == [
        home / str(model.adapter)
    ]
    assert client.get(f"/v1/models/{NAME}").status_code == 404
    assert client.delete(f"/v1/models/{NAME}").status_code == 404
    assert client.get(f"/v1/models/{NAME}:ckpt-step-101").status_code == 200


def test_weights_that_another_model_has_too_stay(client: TestClient, service: Service) -> None:
    model = tuned(service, NAME)
    service.store.add(Model("second", 6, "tunesmith", "copied", model.base, model.adapter))
    client.delete(f"/v1/models/{NAME}")
    assert (service.settings.home / str(model.adapter)).is_dir()


@pytest.mark.parametrize("adapter", ["../outside", "/tmp", "models", "models/../../outside", "."])
def test_nothing_outside_the_folder_of_models_is_ever_removed(
    client: TestClient, service: Service, adapter: str
) -> None:
    outside = service.settings.home.parent / "outside"
    outside.mkdir(exist_ok=True)
    (service.settings.home / "models").mkdir(exist_ok=True)
    service.store.add(Model(NAME, 5, "tunesmith", "tuned", "embedded:base", adapter))
    assert client.delete(f"/v1/models/{NAME}").status_code == 200
    assert outside.is_dir() and (service.settings.home / "models").is_dir() and Path("/tmp").is_dir()


@pytest.mark.parametrize("name", ["gpt-4o-mini", "embedded:base"])
def test_a_base_cannot_be_deleted(client: TestClient, name: str) -> None:
    answer = client.delete(f"/v1/models/{name}")
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "insufficient_permissions"
    assert f"delete the model '{name}'" in answer.json()["error"]["message"]


def test_a_model_in_use_cannot_be_deleted(client: TestClient, service: Service) -> None:
    tuned(service, NAME)
    service.store.add(Deployment("s/g/a/clippy", 7, "clippy", NAME, {}, {}))
    job = Job("ftjob-7", 1, NAME, "embedded:base", "file-1", None, "running", 1, "org", {"type": "supervised"})
    service.store.add(job)
    answer = client.delete(f"/v1/models/{NAME}")
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "model_in_use"
    assert "deployment clippy" in error["message"] and "job ftjob-7" in error["message"]
    service.store.remove(Deployment, "s/g/a/clippy")
    service.store.move_job("ftjob-7", "succeeded", only_from=["running"])
    assert client.delete(f"/v1/models/{NAME}").status_code == 200


def test_a_merged_base_goes_with_the_last_model_on_it_unless_work_goes_on(client: TestClient, service: Service) -> None:
    merged = service.settings.home / "models" / "merged" / "0a1b"
    merged.mkdir(parents=True)
    tuned(service, NAME, base=str(merged))
    tuned(service, f"{NAME}:ckpt-step-1", base=str(merged))
    client.delete(f"/v1/models/{NAME}")
    assert merged.is_dir(), "the checkpoint stands on it"
    job = Job("ftjob-7", 1, "gpt-4o", "embedded:base", "file-1", None, "running", 1, "org", {"type": "supervised"})
    service.store.add(job)
    client.delete(f"/v1/models/{NAME}:ckpt-step-1")
    assert merged.is_dir(), "a job that runs may begin there"
    tuned(service, NAME, base=str(merged))
    service.store.update(Job, "ftjob-7", status="failed")
    client.delete(f"/v1/models/{NAME}")
    assert not merged.exists()
