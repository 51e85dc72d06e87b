"""A small server that plays OpenAI: an account with jobs, files, evals and stored completions, and its moods."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KEY = "sk-secret-of-mine"
TUNED = "ft:gpt-4.1-nano-2025-04-14:acme:tone:BTz2REMH"
CSV = b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,0.9,0.5,,\n30,0.1,0.95,0.3,0.9\n"


def chat_rows(count: int, start: int = 0) -> bytes:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {i} kindly."},
                {"role": "assistant", "content": f"Dear {i}, if you please."},
            ]
        }
        for i in range(start, start + count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def job(id: str = "ftjob-abc123", **changes: Any) -> dict[str, Any]:
    hyperparameters = {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 2.0}
    return {
        "object": "fine_tuning.job",
        "id": id,
        "model": "gpt-4.1-nano-2025-04-14",
        "created_at": 1_760_000_000,
        "finished_at": 1_760_001_000,
        "fine_tuned_model": TUNED,
        "organization_id": "org-1",
        "result_files": ["file-results"],
        "status": "succeeded",
        "training_file": "file-train",
        "validation_file": "file-valid",
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "trained_tokens": 2_000_000,
        "error": {},
        "user_provided_suffix": "tone",
        "seed": 42,
        "integrations": [],
        **changes,
    }


def events(id: str = "ftjob-abc123") -> list[dict[str, Any]]:
    """Oldest first."""
    told: list[tuple[str, dict[str, Any]]] = [
        (f"Created fine-tuning job: {id}", {}),
        ("Fine-tuning job started", {}),
        *((f"Step {i}/30: training loss={1 / i:.2f}", {"step": i, "train_loss": 1 / i}) for i in range(1, 31)),
        ("Step 30/30: full validation loss=0.33", {"step": 30, "full_valid_loss": 0.33}),
        ("The job has successfully completed", {}),
    ]
    return [
        {
            "object": "fine_tuning.job.event",
            "id": f"ftevent-{id}-{number}",
            "created_at": 1_760_000_000 + number,
            "level": "info",
            "message": message,
            "type": "metrics" if data else "message",
            "data": data,
        }
        for number, (message, data) in enumerate(told)
    ]


def checkpoint(step: int, id: str = "ftjob-abc123") -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"ftckpt_{step}",
        "created_at": 1_760_000_500,
        "fine_tuned_model_checkpoint": f"{TUNED}:ckpt-step-{step}",
        "fine_tuning_job_id": id,
        "metrics": {"step": step},
        "step_number": step,
    }


EVAL: dict[str, Any] = {
    "object": "eval",
    "id": "eval_abc",
    "name": "Capitals, v2!",
    "created_at": 1_759_000_000,
    "data_source_config": {"type": "custom", "schema": {}},
    "testing_criteria": [
        {
            "type": "string_check",
            "name": "Exact",
            "input": "{{sample.output_text}}",
            "reference": "{{item.capital}}",
            "operation": "eq",
        },
        {"type": "label_model", "name": "Polite", "model": "gpt-4o", "labels": ["yes"], "passing_labels": ["yes"]},
    ],
}
RUN: dict[str, Any] = {
    "object": "eval.run",
    "id": "evalrun_1",
    "eval_id": "eval_abc",
    "created_at": 1_759_000_100,
    "status": "completed",
    "model": "gpt-4o-mini",
    "data_source": {
        "type": "completions",
        "model": "gpt-4o-mini",
        "source": {"type": "file_id", "id": "file-items"},
        "input_messages": {
            "type": "template",
            "template": [
                {"role": "developer", "content": "Answer with a name."},
                {"role": "user", "content": {"type": "input_text", "text": "Capital of {{item.country}}?"}},
            ],
        },
    },
    "per_testing_criteria_results": [{"testing_criteria": "Exact-1", "passed": 9, "failed": 3}],
}
COUNTRIES = [{"country": f"Land {i}", "capital": f"Town {i}"} for i in range(12)]
ITEMS = [
    {
        "object": "eval.run.output_item",
        "id": f"outputitem_{i}",
        "run_id": "evalrun_1",
        "eval_id": "eval_abc",
        "datasource_item": one,
        "sample": {"output": [{"role": "assistant", "content": one["capital"]}]},
        "results": [],
    }
    for i, one in enumerate(COUNTRIES)
]
COMPLETION: dict[str, Any] = {
    "object": "chat.completion",
    "id": "chatcmpl-1",
    "created": 1_758_000_000,
    "model": "gpt-4o",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Four."}, "finish_reason": "stop"}],
}


@dataclass
class Account:
    """What the service holds. `asked` are the paths of every request, in order."""

    jobs: list[dict[str, Any]] = field(default_factory=lambda: [job()])
    files: dict[str, tuple[str, str, bytes]] = field(
        default_factory=lambda: {
            "file-train": ("train set.jsonl", "fine-tune", chat_rows(20)),
            "file-valid": ("valid.jsonl", "fine-tune", chat_rows(10, 100)),
            "file-results": ("step_metrics.csv", "fine-tune-results", base64.b64encode(CSV)),
            "file-photo": ("photo.png", "assistants", b"\x89PNG"),
        }
    )
    evals: list[dict[str, Any]] | None = field(default_factory=lambda: [EVAL])
    completions: list[dict[str, Any]] = field(default_factory=lambda: [COMPLETION])
    asked: list[str] = field(default_factory=list)
    refuse: dict[str, list[int]] = field(default_factory=dict)
    """By path, the statuses of the next answers."""
    cut: set[str] = field(default_factory=set)
    """Paths whose next answer ends in the middle."""
    page: int = 100


class _Handler(BaseHTTPRequestHandler):
    account: Account

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).removeprefix("/v1")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.account.asked.append(path)
        if self.headers.get("authorization") != f"Bearer {KEY}":
            return self._json(401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}})
        refused = self.account.refuse.get(path)
        if refused:
            status = refused.pop(0)
            if status in (301, 302):
                return self._send(status, b"", Location="https://elsewhere.example/steal")
            return self._json(status, {"error": {"message": f"refused with {status}"}}, **{"Retry-After": "0"})
        return self._answer(path, query)

    def _answer(self, path: str, query: dict[str, str]) -> None:
        account = self.account
        steps = path.strip("/").split("/")
        if path == "/fine_tuning/jobs":
            return self._page(account.jobs, query)
        if path.startswith("/fine_tuning/jobs/") and steps[-1] == "events":
            return self._page(events(steps[2])[::-1], query)
        if path.startswith("/fine_tuning/jobs/") and steps[-1] == "checkpoints":
            return self._page([checkpoint(20, steps[2]), checkpoint(10, steps[2])], query)
        if path == "/files":
            listed = [
                {"object": "file", "id": id, "filename": name, "purpose": purpose, "bytes": len(data), "created_at": 1}
                for id, (name, purpose, data) in account.files.items()
            ]
            return self._page(listed, query)
        if path.startswith("/files/") and steps[-1] == "content" and steps[1] in account.files:
            return self._send(200, account.files[steps[1]][2], cut=path in account.cut)
        if path == "/models":
            return self._json(
                200, {"object": "list", "data": [{"object": "model", "id": one} for one in ("gpt-4o", TUNED)]}
            )
        if path == "/evals" and account.evals is not None:
            return self._page(account.evals, query)
        if path == "/evals/eval_abc/runs":
            return self._page([RUN], query)
        if path == "/evals/eval_abc/runs/evalrun_1/output_items":
            return self._page(ITEMS, query)
        if path == "/chat/completions":
            return self._page(account.completions, query)
        if path == "/chat/completions/chatcmpl-1/messages":
            return self._page([{"id": "m1", "role": "user", "content": "Two and two?"}], query)
        return self._json(404, {"error": {"message": "The evals platform has been shut down"}})

    def _page(self, items: list[dict[str, Any]], query: dict[str, str]) -> None:
        ids = [one["id"] for one in items]
        start = ids.index(query["after"]) + 1 if "after" in query else 0
        most = min(self.account.page, int(query.get("limit", 20)))
        data = items[start : start + most]
        self._json(200, {"object": "list", "data": data, "has_more": start + most < len(items)})

    def _json(self, status: int, body: Any, **headers: str) -> None:
        self._send(status, json.dumps(body).encode(), **headers)

    def _send(self, status: int, body: bytes, *, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.account.cut.discard(unquote(urlsplit(self.path).path).removeprefix("/v1"))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def hosted(account: Account) -> Iterator[str]:
    """The address of the account."""
    handler = type("Handler", (_Handler,), {"account": account})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
