"""What programs do with the official client, from the upload to the answer; run by itself, by any version of `openai`.

    python flows.py recipes|functions|completions|azure FOLDER

FOLDER holds the rows. Prints one JSON object of what was seen. Only calls that client 1.40 has; the server is named by
the environment alone.
"""

import base64
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import openai


def recipes(folder: Path) -> dict[str, Any]:
    """The cookbook's notebook on chat models."""
    client = openai.OpenAI(organization="<org id>", project="<project id>")
    ids = [_uploaded(client, folder / name) for name in ("train.jsonl", "valid.jsonl")]
    job = client.fine_tuning.jobs.create(
        training_file=ids[0],
        validation_file=ids[1],
        model="gpt-4o-mini-2024-07-18",
        suffix="recipe-ner",
        hyperparameters={"n_epochs": 1},
    )
    began = job.status
    job = _ended(client, job.id)
    page = client.fine_tuning.jobs.list_events(job.id)
    events = list(page.data)
    events.reverse()
    everything = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=10)]
    if job.fine_tuned_model is None:
        raise RuntimeError("Fine-tuned model ID not found. Your job has likely not been completed yet.")
    question = json.loads((folder / "valid.jsonl").read_text().splitlines()[0])["messages"][:-1]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=question, temperature=0, max_tokens=60)
    streamed = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=question,
        temperature=0,
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(streamed)
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    return {
        "began": began,
        "status": job.status,
        "tokens": job.trained_tokens,
        "model": job.fine_tuned_model,
        "page": [event.message for event in events],
        "events": everything,
        "answer": answer.choices[0].message.content,
        "streamed": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        "usage": [answer.usage.total_tokens, chunks[-1].usage.total_tokens],
        "checkpoints": [one.fine_tuned_model_checkpoint for one in checkpoints],
        "csv": client.files.content(job.result_files[0]).text[:80],
        "models": job.fine_tuned_model in [model.id for model in client.models.list()],
        "deleted": client.models.delete(job.fine_tuned_model).deleted,
        "after": _error_of(lambda: client.models.retrieve(job.fine_tuned_model)),
    }


def functions(folder: Path) -> dict[str, Any]:
    """Function calling: cancel, list, base64 results, tools."""
    client = openai.OpenAI()
    training = _uploaded(client, folder / "tools.jsonl")
    mistake = client.fine_tuning.jobs.create(training_file=training, model="gpt-3.5-turbo")
    cancelled = client.fine_tuning.jobs.cancel(mistake.id).status
    job = client.fine_tuning.jobs.create(
        training_file=training, model="gpt-3.5-turbo", suffix="home", hyperparameters={"n_epochs": 1}
    )
    listed = [one.id for one in client.fine_tuning.jobs.list(limit=10).data]
    job = _ended(client, job.id)
    rows = [json.loads(line) for line in (folder / "tools.jsonl").read_text().splitlines()]
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=rows[0]["messages"][:-1], tools=rows[0]["tools"], temperature=0,
        max_tokens=80,
    )  # fmt: skip
    calls = answer.choices[0].message.tool_calls or []
    return {
        "cancelled": cancelled,
        "listed": listed[:2] == [job.id, mistake.id],
        "status": job.status,
        "csv": base64.b64decode(client.files.content(job.result_files[0]).read()).decode("utf-8")[:60],
        "finish": answer.choices[0].finish_reason,
        "calls": [[call.function.name, json.loads(call.function.arguments)] for call in calls],
    }


def completions(folder: Path) -> dict[str, Any]:
    """Classification by the first token of a completion."""
    client = openai.OpenAI()
    training = _uploaded(client, folder / "pairs.jsonl")
    job = client.fine_tuning.jobs.create(training_file=training, model="babbage-002", hyperparameters={"n_epochs": 1})
    job = _ended(client, job.id)
    row = json.loads((folder / "pairs.jsonl").read_text().splitlines()[0])
    answer = client.completions.create(
        model=job.fine_tuned_model, prompt=row["prompt"], max_tokens=1, temperature=0, logprobs=2
    )
    top = answer.choices[0].logprobs.top_logprobs
    return {
        "status": job.status,
        "model": job.fine_tuned_model,
        "text": answer.choices[0].text,
        "top": [len(one) for one in top],
        "csv": client.files.content(job.result_files[0]).text.splitlines()[0],
    }


def azure(folder: Path) -> dict[str, Any]:
    """Azure's tutorial without its deployment, which is no part of the client."""
    client = openai.AzureOpenAI(api_version="2024-10-21")
    training = _uploaded(client, folder / "train.jsonl")
    job = client.fine_tuning.jobs.create(
        training_file=training, model="gpt-4o-mini-2024-07-18", seed=105, extra_body={"trainingType": "Standard"}
    )
    began = job.status
    job = _ended(client, job.id)
    question = json.loads((folder / "train.jsonl").read_text().splitlines()[0])["messages"][:-1]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=question, max_tokens=20)
    return {
        "began": began,
        "status": job.status,
        "model": job.fine_tuned_model,
        "events": [event.message for event in client.fine_tuning.jobs.list_events(job.id)],
        "checkpoints": len(client.fine_tuning.jobs.checkpoints.list(job.id).data),
        "answer": answer.choices[0].message.role,
    }


def _uploaded(client: Any, path: Path) -> str:
    with path.open("rb") as file:
        return client.files.create(file=file, purpose="fine-tune").id


def _ended(client: Any, job_id: str) -> Any:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.5)
    raise TimeoutError(job_id)


def _error_of(call: Any) -> list[Any]:
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.code, error.request_id is not None]
    return []


FLOWS = {"recipes": recipes, "functions": functions, "completions": completions, "azure": azure}

if __name__ == "__main__":
    seen = FLOWS[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps({"client": openai.__version__, "home": os.environ.get("OPENAI_BASE_URL"), **seen}))
