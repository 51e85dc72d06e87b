"""The tutorial once more, with a server and a worker of our own that really train."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import AzureOpenAI

from tests.service.azure.test_jobs import rows
from tests.service.live import live_server

pytestmark = pytest.mark.slow


def test_ten_rows_become_a_deployment_that_answers(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("aliases:\n  gpt-4o-mini-2024-07-18: embedded:tiny\nevidence: false\n")
    with live_server(tmp_path / "home", "--config", str(config)) as live:
        client = AzureOpenAI(api_key="local", api_version="2024-10-21", azure_endpoint=live.url, max_retries=0)
        names = ("training_set.jsonl", "validation_set.jsonl")
        ids = [client.files.create(file=(name, rows()), purpose="fine-tune").id for name in names]
        job = client.fine_tuning.jobs.create(
            training_file=ids[0],
            validation_file=ids[1],
            model="gpt-4o-mini-2024-07-18",
            seed=105,
            hyperparameters={"n_epochs": 3},
        )
        until = time.monotonic() + 180
        while job.status not in ["succeeded", "failed"]:
            assert time.monotonic() < until, job
            time.sleep(0.3)
            job = client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded" and job.fine_tuned_model and job.trained_tokens
        told = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=10)][::-1]
        assert "embedded:tiny" in told[0] and "Job started." in told
        assert [one.split(":")[0] for one in told if one.startswith("Step ")] == [f"Step {i}" for i in range(1, 31)]
        assert told[-1] == "Job succeeded."
        checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
        model = job.fine_tuned_model
        assert [(one.step_number, one.fine_tuned_model_checkpoint) for one in checkpoints] == [
            (30, model),
            (20, f"{model}:ckpt-step-20"),
            (10, f"{model}:ckpt-step-10"),
        ]
        csv = client.files.content(job.result_files[0]).text.splitlines()
        assert csv[0].startswith("step,train_loss,train_mean_token_accuracy") and len(csv) == 31

        url = (
            f"{live.url}/subscriptions/s/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/a/deployments"
        )
        version = {"api-version": "2024-10-01"}
        properties: Any = {"model": {"format": "OpenAI", "name": checkpoints[1].id, "version": "1"}}
        for name, deployed in (("whole", model), ("earlier", checkpoints[1].id)):
            properties["model"]["name"] = deployed
            made = requests.put(f"{url}/{name}", params=version, json={"properties": properties}, timeout=60)
            assert made.status_code == 201
            state = "Creating"
            while state == "Creating":
                assert time.monotonic() < until
                time.sleep(0.1)
                state = requests.get(f"{url}/{name}", params=version, timeout=60).json()["properties"][
                    "provisioningState"
                ]
            assert state == "Succeeded"
        say: Any = [{"role": "user", "content": "What is 3 and 3?"}]
        answers = {
            name: client.chat.completions.create(model=name, messages=say, max_tokens=20, temperature=0)
            for name in ("whole", "earlier")
        }
        assert answers["whole"].model == model and answers["earlier"].model == f"{model}:ckpt-step-20"
        assert all(one.choices[0].message.content for one in answers.values())
