"""Making jobs: what is kept, what is refused, and in which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.service.apps import client_of
from tests.service.jobs.made import (
    MODEL,
    a_file,
    chat_rows,
    completion_rows,
    preference_rows,
    question_rows,
)
from tunesmith.service.context import Service
from tunesmith.service.store.nouns import Event, Job, Model

JOBS = "/v1/fine_tuning/jobs"
GRADER = {
    "type": "string_check",
    "name": "sum",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.sum}}",
}


def create(client: TestClient, **body: Any) -> Any:
    return client.post(JOBS, json={"model": MODEL, **body})


def refused(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = create(client, **body)
    assert answer.status_code in (400, 404), answer.text
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def test_the_first_answer_has_every_field(service: Service, client: TestClient) -> None:
    train, valid = a_file(service, chat_rows(10)), a_file(service, chat_rows(3, 20))
    job = create(
        client, training_file=train.id, validation_file=valid.id, suffix="recipe-ner", metadata={"a": "b"}
    ).json()
    numbers = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert job.pop("id").startswith("ftjob-")
    assert 0 <= job.pop("seed") < 2**31
    assert job.pop("created_at") > 1_700_000_000
    assert job == {
        "object": "fine_tuning.job",
        "model": MODEL,
        "finished_at": None,
        "fine_tuned_model": None,
        "organization_id": "tunesmith",
        "result_files": [],
        "status": "validating_files",
        "validation_file": valid.id,
        "training_file": train.id,
        "hyperparameters": numbers,
        "trained_tokens": None,
        "error": {},
        "user_provided_suffix": "recipe-ner",
        "estimated_finish": None,
        "integrations": [],
        "metadata": {"a": "b"},
        "usage_metrics": None,
        "shared_with_openai": False,
        "eval_id": None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": numbers}},
        "resolved": {},
        "evidence": {"status": "pending", "error": None},
    }


def test_the_first_events(service: Service, client: TestClient) -> None:
    train = a_file(service, chat_rows(10))
    job = create(
        client,
        training_file=train.id,
        integrations=[{"type": "wandb", "wandb": {"project": "p"}}],
        prompt_loss_weight=0.1,
    ).json()
    told = [(e.seq, e.level, e.message) for e in service.store.all(Event, {"job_id": job["id"]})]
    assert told == [
        (1, "info", f"Created fine-tuning job: {job['id']} ({MODEL} stands for the local base embedded:base)"),
        (2, "info", f"Validating training file: {train.id}"),
        (3, "warn", "prompt_loss_weight is not used: only answers are learnt"),
        (4, "warn", "integrations are kept with the job, but nothing is sent to them from here"),
    ]
    assert job["integrations"] == [{"type": "wandb", "wandb": {"project": "p"}}]


def test_an_alias_becomes_its_snapshot(service: Service, client: TestClient) -> None:
    train = a_file(service, chat_rows(10))
    assert create(client, model="gpt-4o-mini", training_file=train.id).json()["model"] == MODEL


def test_a_job_on_a_tuned_model_goes_on_from_it(service: Service, client: TestClient) -> None:
    train = a_file(service, chat_rows(10))
    tuned = Model("ft:gpt-4o-mini-2024-07-18:o::abcdefgh", 1, "o", "tuned", "embedded:base", "models/x")
    service.store.add(tuned)
    job = create(client, model=tuned.id, training_file=train.id).json()
    kept = service.store.get(Job, job["id"])
    assert kept is not None
    assert (job["model"], kept.base) == (tuned.id, "embedded:base")
    assert kept.extra == {"starts_from": tuned.id, "first_base": "embedded:base"}
    first = service.store.all(Event, {"job_id": job["id"]})[0].message
    said = f"it goes on from {tuned.id}, which was tuned on the local base embedded:base"
    assert first == f"Created fine-tuning job: {job['id']} ({said})"


def test_a_job_on_a_model_that_was_tuned_twice_names_the_first_base(service: Service, client: TestClient) -> None:
    train = a_file(service, chat_rows(10))
    first = Model("ft:gpt-4o-mini-2024-07-18:o::abcdefgh", 1, "o", "tuned", "embedded:base", "models/x")
    service.store.add(first)
    job = create(client, model=first.id, training_file=train.id).json()
    merged = str(service.settings.home / "models" / "merged" / "0123abcd")
    again = Model("ft:gpt-4o-mini-2024-07-18:o::ijklmnop", 2, "o", "tuned", merged, "models/y", job_id=job["id"])
    service.store.add(again)
    job = create(client, model=again.id, training_file=train.id).json()
    assert "on the local base embedded:base)" in service.store.all(Event, {"job_id": job["id"]})[0].message


def test_hyperparameters_in_either_place_are_the_same(service: Service, client: TestClient) -> None:
    train = a_file(service, chat_rows(10)).id
    numbers = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    old = create(client, training_file=train, hyperparameters=numbers).json()
    method = {"type": "supervised", "supervised": {"hyperparameters": numbers}}
    new = create(client, training_file=train, method=method).json()
    both = create(client, training_file=train, method=method, hyperparameters=numbers).json()
    for job in (old, new, both):
        assert job["hyperparameters"] == numbers
        assert job["method"] == method


def test_a_method_without_settings_and_nulls_are_taken(service: Service, client: TestClient) -> None:
    train = a_file(service, chat_rows(10)).id
    empty = {"validation_file": None, "suffix": None, "seed": None, "metadata": None, "integrations": None}
    job = create(client, training_file=train, method={"type": "supervised"}, hyperparameters=None, **empty).json()
    assert job["hyperparameters"]["n_epochs"] == "auto"


def test_azures_tier_is_kept(service: Service, client: TestClient) -> None:
    job = create(client, training_file=a_file(service, chat_rows(10)).id, trainingType="developerTier").json()
    kept = service.store.get(Job, job["id"])
    assert kept is not None and kept.extra == {"trainingType": "developerTier"}


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        ({"n_epochs": 3}, "n_epochs", "unknown_parameter", "Unknown parameter: 'n_epochs'."),
        ({"hyperparameters": {"epochs": 3}}, "hyperparameters.epochs", "unknown_parameter", None),
        ({"suffix": ""}, "suffix", "invalid_value", None),
        ({"suffix": "x" * 65}, "suffix", "invalid_value", None),
        ({"suffix": 5}, "suffix", "invalid_type", None),
        ({"seed": -1}, "seed", "invalid_value", None),
        ({"seed": 2**31}, "seed", "invalid_value", None),
        ({"seed": "7"}, "seed", "invalid_type", None),
        ({"seed": 7.5}, "seed", None, None),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value", None),
        (
            {"hyperparameters": {"n_epochs": 51}},
            "hyperparameters.n_epochs",
            "invalid_value",
            "Invalid value for 'hyperparameters.n_epochs': expected 'auto' or a value <= 50, but got 51 instead.",
        ),
        (
            {"hyperparameters": {"n_epochs": "3"}},
            "hyperparameters.n_epochs",
            "invalid_value",
            "Invalid value for 'hyperparameters.n_epochs': expected 'auto' or an integer, but got \"3\" instead.",
        ),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", None, None),
        ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size", "invalid_value", None),
        ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "invalid_value", None),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier", None, None),
        ({"hyperparameters": {"learning_rate_multiplier": -2}}, "hyperparameters.learning_rate_multiplier", None, None),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value", None),
        ({"metadata": {"k" * 65: ""}}, "metadata", "invalid_value", None),
        ({"metadata": {"k": "v" * 513}}, "metadata", "invalid_value", None),
        ({"metadata": {"k": 1}}, "metadata.k", "invalid_type", None),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}] * 6}, "integrations", "invalid_value", None),
        ({"integrations": [{"type": "mlflow"}]}, None, None, None),
        ({"method": {}}, "method.type", "missing_required_parameter", None),
        ({"method": {"type": "ppo"}}, "method.type", "invalid_value", None),
        ({"method": {"type": "supervised", "dpo": {}}}, "method", "invalid_value", None),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2.1}}}},
            "method.dpo.hyperparameters.beta",
            "invalid_value",
            None,
        ),
        ({"method": {"type": "reinforcement"}}, "method", "invalid_value", None),
        ({"trainingType": "cheap"}, "trainingType", "invalid_value", None),
        ({"model": ""}, "model", "invalid_value", None),
    ],
)  # fmt: skip
def test_fields_out_of_range(
    service: Service, client: TestClient, body: dict[str, Any], param: str | None, code: str | None, message: str | None
) -> None:
    error = refused(client, training_file=a_file(service, chat_rows(10)).id, **body)
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    if message is not None:
        assert error["message"] == message
    assert not service.store.count(Job), "no job is left"


def test_what_is_missing_is_named_all_at_once(client: TestClient) -> None:
    error = client.post(JOBS, json={"sufix": "x"}).json()["error"]
    found = {(one["param"], one["code"]) for one in error["details"]}
    assert found == {
        ("model", "missing_required_parameter"),
        ("training_file", "missing_required_parameter"),
        ("sufix", "unknown_parameter"),
    }


def test_places_that_contradict_each_other(service: Service, client: TestClient) -> None:
    error = refused(
        client,
        training_file=a_file(service, chat_rows(10)).id,
        hyperparameters={"n_epochs": 2, "batch_size": 4},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}},
    )
    assert error["param"] == "hyperparameters"
    assert "n_epochs is 2 in 'hyperparameters' and 3 in 'method.supervised'" in error["message"]
    assert "batch_size" not in error["message"]


def test_unknown_models_are_told_what_exists(service: Service, client: TestClient) -> None:
    answer = create(client, model="gpt-9", training_file=a_file(service, chat_rows(10)).id)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"].startswith("The model 'gpt-9' does not exist or you do not have access to it.")
    assert MODEL in error["message"]


@pytest.mark.parametrize("field", ["training_file", "validation_file"])
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"status": "deleted"}, "invalid {field}: {id}"),
        ({"expires_at": 5}, "invalid {field}: {id}"),
        ({"purpose": "batch"}, "invalid {field}: {id} has the purpose 'batch', but must have 'fine-tune'"),
        (
            {"status": "error", "status_details": "it is no JSON"},
            "invalid {field}: {id} could not be read: it is no JSON",
        ),
        (
            {"blob": None, "status": "pending"},
            "File '{id}' is still being processed and is not ready to be used for fine-tuning. Please try again later.",
        ),
    ],
)
def test_files_that_cannot_be_used(
    service: Service, client: TestClient, field: str, fields: dict[str, Any], text: str
) -> None:
    good, bad = a_file(service, chat_rows(10)), a_file(service, chat_rows(10), **fields)
    body = {"training_file": good.id, field: bad.id}
    error = refused(client, **body)
    assert error["message"] == text.format(field=field, id=bad.id)
    assert error["param"] == field
    assert error["code"] == (f"invalid_{field}" if text.startswith("invalid") else None)


def test_files_that_are_not_there_are_told_together(client: TestClient) -> None:
    error = refused(client, training_file="file-a", validation_file="../../etc/passwd")
    assert error["message"] == "invalid training_file: file-a"
    assert [one["message"] for one in error["details"]] == [
        "invalid training_file: file-a",
        "invalid validation_file: ../../etc/passwd",
    ]


def test_a_full_queue(service: Service) -> None:
    limits = replace(service.settings.limits, queued_jobs=1)
    small = replace(service, settings=replace(service.settings, limits=limits))
    with client_of(small) as client:
        body = {"training_file": a_file(service, chat_rows(10)).id}
        first = create(client, **body).json()
        error = refused(client, **body)
        assert error["code"] == "exceeded_quota"
        client.post(f"{JOBS}/{first['id']}/cancel")
        assert create(client, **body).status_code == 200


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


def test_preferences_are_checked_and_refused(service: Service, client: TestClient) -> None:
    train = a_file(service, preference_rows(12))
    error = refused(client, training_file=train.id, method=dpo(n_epochs=2, beta=0.1, batch_size=8))
    assert (error["code"], error["param"]) == ("unsupported_value", "method.type")
    assert error["message"] == (
        "Unsupported value: 'method.type' does not support 'dpo' with this model. Supported values are: 'supervised'. "
        "The rows were checked and are valid."
    )
    assert not service.store.count(Job)


def test_faults_of_preferences_come_first(service: Service, client: TestClient) -> None:
    rows = preference_rows(8)
    rows[3]["preferred_output"] = []
    error = refused(client, training_file=a_file(service, rows).id, method=dpo())
    codes = [one["code"] for one in error["details"]]
    assert codes[-1] == "unsupported_value"
    assert "invalid_n_examples" in codes
    assert any(4 in one.get("lines", []) for one in error["details"])


def test_conversations_for_preferences(service: Service, client: TestClient) -> None:
    file = a_file(service, chat_rows(10))
    error = refused(client, training_file=file.id, method=dpo())
    assert error["message"] == (
        f"Input file {file.id} is in the fine-tune-chat format, but the specified fine-tuning job is not using "
        "'supervised' as the training method (provided method=dpo)."
    )


def test_reinforcement_is_checked_and_refused(service: Service, client: TestClient) -> None:
    train, valid = a_file(service, question_rows(12)), a_file(service, question_rows(4))
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
    error = refused(client, training_file=train.id, validation_file=valid.id, method=method)
    assert error["code"] == "unsupported_value"
    assert error["message"].endswith("The rows and grader were checked and are valid.")


def test_faults_of_a_grader_and_of_rows(service: Service, client: TestClient) -> None:
    method = {"type": "reinforcement", "reinforcement": {"grader": {**GRADER, "operation": "equals"}}}
    error = refused(client, training_file=a_file(service, question_rows(12)).id, method=method)
    params = [one["param"] for one in error["details"]]
    assert params[0] == "validation_file", "there is none"
    assert any(param and param.startswith("method.reinforcement.grader") for param in params)


def test_what_a_grader_asks_of_rows_that_do_not_have_it(service: Service, client: TestClient) -> None:
    rows = question_rows(12)
    del rows[4]["sum"], rows[9]["sum"]
    train, valid = a_file(service, rows), a_file(service, question_rows(4))
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
    error = refused(client, training_file=train.id, validation_file=valid.id, method=method)
    assert (error["code"], error["param"]) == ("invalid_training_file", "training_file")
    assert error["message"] == (
        f"The grader asks for 'item.sum', which 2 of the 12 rows of {train.id} do not have; the first is line 5."
    )
    assert error["details"][0]["lines"] == [5, 10] and error["details"][-1]["code"] == "unsupported_value"


def test_completion_rows_are_taken(service: Service, client: TestClient) -> None:
    assert create(client, model="babbage-002", training_file=a_file(service, completion_rows(10)).id).status_code == 200
