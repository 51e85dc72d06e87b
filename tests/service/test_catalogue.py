"""Which model a name means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.service.azure.serving import lay_store
from tunesmith.inference.serving.types import ModelRef
from tunesmith.service.catalogue import StoreCatalogue, shown_base
from tunesmith.service.errors import ApiError
from tunesmith.service.settings import OPENAI_NAMES, RemoteModel, ServeSettings
from tunesmith.service.store import open_store
from tunesmith.service.store.interface import Store
from tunesmith.service.store.nouns import Checkpoint, Deployment, Model

TUNED = "ft:gpt-4o-mini-2024-07-18:tunesmith:recipe-ner:9o1eNlSa"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    lay_store(tmp_path)
    store, _ = open_store(ServeSettings(home=tmp_path))
    yield store
    store.close()


def catalogue(store: Store, home: Path, aliases: Mapping[str, str] | None = None) -> StoreCatalogue:
    settings = ServeSettings(home=home)
    if aliases is not None:
        settings = ServeSettings(home=home, aliases=aliases)
    return StoreCatalogue(settings, store)


def tuned(name: str = TUNED, adapter: str = "models/a1") -> Model:
    return Model(name, 5, "tunesmith", "tuned", "embedded:base", adapter, "chatml", "ftjob-1", 30)


def deployment(name: str, model: str, account: str = "a") -> Deployment:
    return Deployment(f"s/g/{account}/{name}".lower(), 7, name, model, {}, {"provisioningState": "Succeeded"})


def refused(found: StoreCatalogue, name: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        found.resolve(name)
    return caught.value


@pytest.mark.parametrize("name", OPENAI_NAMES)
def test_every_known_name_stands_for_the_embedded_base(store: Store, tmp_path: Path, name: str) -> None:
    found = catalogue(store, tmp_path).resolve(name)
    assert found.ref.base == "embedded:base" and found.ref.adapter is None and found.record is None


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
        ("gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
        ("gpt-35-turbo", "gpt-35-turbo-0125"),
        ("gpt-3.5-turbo-0613", "gpt-3.5-turbo-0613"),
        ("babbage-002", "babbage-002"),
        ("embedded:base", "embedded:base"),
    ],
)
def test_an_undated_name_is_shown_as_its_snapshot(store: Store, tmp_path: Path, asked: str, shown: str) -> None:
    assert catalogue(store, tmp_path).resolve(asked).shown == shown


def test_a_snapshot_that_stands_for_another_base_is_not_shown(store: Store, tmp_path: Path) -> None:
    found = catalogue(store, tmp_path, {"gpt-4o": "embedded:base", "gpt-4o-2024-08-06": "embedded:tiny"})
    assert found.resolve("gpt-4o").shown == "gpt-4o"
    assert found.base_of("gpt-4o-2024-08-06") == "embedded:tiny"


def test_a_tuned_model_has_its_adapter_below_home(store: Store, tmp_path: Path) -> None:
    store.add(tuned())
    found = catalogue(store, tmp_path).resolve(TUNED)
    assert found.ref.adapter == tmp_path / "models/a1" and found.ref.base == "embedded:base"
    assert found.ref.chat_template == "chatml" and found.record == tuned() and found.shown == TUNED


def test_a_deployment_serves_its_model_under_any_case(store: Store, tmp_path: Path) -> None:
    store.add_all([tuned(), deployment("Clippy", TUNED)])
    for name in ("Clippy", "clippy"):
        assert catalogue(store, tmp_path).resolve(name).shown == TUNED


def test_a_deployment_named_like_a_base_wins_for_answers_but_not_for_jobs(store: Store, tmp_path: Path) -> None:
    store.add_all([tuned(), deployment("gpt-4o-mini", TUNED)])
    found = catalogue(store, tmp_path)
    assert found.resolve("gpt-4o-mini").shown == TUNED
    assert found.model_of("gpt-4o-mini").shown == "gpt-4o-mini-2024-07-18"
    assert found.model_of("gpt-4o-mini").record is None


def test_of_two_deployments_with_one_name_the_newest_serves(store: Store, tmp_path: Path) -> None:
    store.add_all([tuned(), deployment("d1", "gpt-4o"), deployment("d1", TUNED, account="b")])
    assert catalogue(store, tmp_path).resolve("d1").shown == TUNED


def test_a_deployment_whose_model_is_gone_is_refused_rather_than_answered_by_a_namesake(
    store: Store, tmp_path: Path
) -> None:
    store.add(deployment("gpt-4o-mini", TUNED))
    error = refused(catalogue(store, tmp_path), "gpt-4o-mini")
    assert error.status == 404 and "does not exist any more" in error.message and TUNED in error.message


def test_a_checkpoint_answers_by_name_and_by_azures_id(store: Store, tmp_path: Path) -> None:
    name = "gpt-4o-mini-2024-07-18.ft-0e20:ckpt-step-90"
    store.add_all([tuned(name, "models/c1"), Checkpoint("ftchkpt-12", 3, "ftjob-1", name, 90, {})])
    found = catalogue(store, tmp_path)
    assert found.resolve("ftchkpt-12") == found.resolve(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gpt-9",
        "embedded:nothing",
        "embedded:../base",
        "/etc/passwd",
        "../x",
        "~/m",
        "org/private",
        "a\0b",
        "é" * 99_999,
    ],
)
def test_what_is_not_registered_does_not_exist(store: Store, tmp_path: Path, name: str) -> None:
    error = refused(catalogue(store, tmp_path), name)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert error.message.startswith("The model '") and len(error.message) < 2_500
    assert "does not exist or you do not have access to it." in error.message


def test_the_refusal_lists_what_exists_and_what_was_probably_meant(store: Store, tmp_path: Path) -> None:
    store.add_all([tuned(), deployment("clippy", TUNED)])
    error = refused(catalogue(store, tmp_path), "gpt-4o-mini-2024-07-19")
    for part in ("Did you mean 'gpt-4o-mini-2024-07-18'?", TUNED, "clippy", "embedded:base", "babbage-002"):
        assert part in error.message


def test_of_very_many_models_the_newest_are_told(store: Store, tmp_path: Path) -> None:
    store.add_all([tuned(f"ft:x::{i:04}") for i in range(100)])
    message = refused(catalogue(store, tmp_path), "nothing").message
    assert "ft:x::0099" in message and "ft:x::0000" not in message and "80 more (GET /v1/models)" in message


def test_a_folder_is_reached_by_its_alias_alone_and_never_told(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "secret" / "mine"
    folder.mkdir(parents=True)
    found = catalogue(store, tmp_path, {"mine": str(folder), "small": "org/small"})
    assert found.base_of("mine") == str(folder)
    assert found.base_of("org/small") == "org/small"
    assert refused(found, str(folder)).code == "model_not_found"
    assert "secret" not in refused(found, "nothing").message
    assert shown_base(str(folder)) == "mine" and shown_base("org/small") == "org/small"
    assert {"mine", "small", "org/small", "embedded:base"} <= {one.id for one in found.names()}


def test_names_are_tuned_models_then_bases_once_each(store: Store, tmp_path: Path) -> None:
    store.add(tuned())
    names = [one.id for one in catalogue(store, tmp_path).names()]
    assert names[0] == TUNED and names[1:31] == list(OPENAI_NAMES)
    assert len(names) == len(set(names))


def test_a_remote_model_answers_under_its_name_and_is_no_base(store: Store, tmp_path: Path) -> None:
    remotes = {"judge": RemoteModel("https://api.example.org/v1", "big-one", "EXAMPLE_KEY")}
    found = StoreCatalogue(ServeSettings(home=tmp_path, remotes=remotes), store)
    judge = found.resolve("judge")
    assert judge.shown == "judge" and judge.record is None
    assert judge.ref == ModelRef(
        "big-one", engine="remote", url="https://api.example.org/v1", key_variable="EXAMPLE_KEY"
    )
    assert next(one for one in found.names() if one.id == "judge").engine == "remote"
    assert "judge" in refused(found, "nothing").message
    assert refused(found, "big-one").code == "model_not_found", "only under the name it was given"


def test_a_base_that_vllm_serves_takes_its_adapters_along(store: Store, tmp_path: Path) -> None:
    store.add(tuned())
    settings = ServeSettings(home=tmp_path, vllm={"embedded:base": "http://127.0.0.1:8001/v1"})
    found = StoreCatalogue(settings, store)
    for name in ("gpt-4o", "embedded:base", TUNED):
        ref = found.resolve(name).ref
        assert (ref.engine, ref.url, ref.base) == ("vllm", "http://127.0.0.1:8001/v1", "embedded:base")
    assert found.resolve(TUNED).ref.adapter == tmp_path / "models/a1"
    assert found.resolve("embedded:tiny").ref == ModelRef("embedded:tiny")
