"""How quickly the service keeps and lists: uploads, jobs, events, over real HTTP on a new SQLite store.

    python benchmarks/service_store.py [--uploads 1000] [--jobs 200] [--events 50000]

The server is a process of its own and listens on 127.0.0.1; the client keeps one connection and asks one thing at a
time. Each time is from sending the request to having the whole answer. An upload is a file of 12 conversations, which
the server checks, writes to the disk and flushes before it answers. Everything is in a temporary folder. About half a
minute; ends with 1 where the 95th percentile of something is above 50 ms.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import math
import multiprocessing
import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMIT = 0.050
"""Seconds, of the 95th percentile."""
_BOUNDARY = "an-upload-of-the-benchmark"
_PAGE = 100
_TIMES = 100
"""How often the lists of files and jobs are paged through."""


def serve(home: str, listening: socket.socket) -> None:
    """A server without a model, until it is ended."""
    import uvicorn

    from tunesmith.service.app import make_app
    from tunesmith.service.catalogue import StoreCatalogue
    from tunesmith.service.context import Service
    from tunesmith.service.settings import ServeSettings
    from tunesmith.service.settling import settle
    from tunesmith.service.store import open_store

    settings = ServeSettings(home=Path(home))
    store, blobs = open_store(settings)
    service = Service(settings, store, blobs, StoreCatalogue(settings, store), None)
    app = make_app(service)
    settle()  # as `tunesmith serve` does
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listening])


@contextmanager
def client_of(home: Path) -> Iterator[http.client.HTTPConnection]:
    """A connection to a server on this home."""
    from tunesmith.service.server import bind

    listening = bind("127.0.0.1", 0)
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(str(home), listening), daemon=True)
    process.start()
    connection = http.client.HTTPConnection("127.0.0.1", listening.getsockname()[1], timeout=60)
    try:
        asked(connection, "GET", "/v1/files")
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.join(30)
        listening.close()


def asked(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **headers: str
) -> Any:
    """The JSON of an answer. Raises `RuntimeError` for a refusal."""
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]!r}")
    return json.loads(data)


def form(rows: int, number: int) -> bytes:
    """An upload of so many conversations, of which no two are the same."""
    texts = [(f"What is {number} plus {row}?", f"It is {number + row}.") for row in range(rows)]
    conversations = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in texts
    ]
    lines = "".join(json.dumps(one) + "\n" for one in conversations)
    head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    return (
        f'{head}"purpose"\r\n\r\nfine-tune\r\n'
        f'{head}"file"; filename="{number}.jsonl"\r\nContent-Type: application/octet-stream\r\n\r\n'
        f"{lines}\r\n--{_BOUNDARY}--\r\n"
    ).encode()


def fill(home: Path, jobs: int, events: int) -> None:
    """Jobs, and events of the first of them, written by the store itself."""
    from tunesmith.service.settings import ServeSettings
    from tunesmith.service.store import open_store
    from tunesmith.service.store.nouns import Event, Job

    store, _ = open_store(ServeSettings(home=home))
    store.add_all(
        [
            Job(
                id=f"ftjob-{n:024}",
                created_at=1_700_000_000 + n,
                model="gpt-4o-mini-2024-07-18",
                base="embedded:base",
                training_file="file-training",
                validation_file=None,
                status="succeeded",
                seed=n,
                organization_id="org",
                method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
                hyperparameters={"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0},
                evidence="none",
            )
            for n in range(jobs)
        ]
    )
    store.add_all(
        [
            Event(
                id=f"ftevent-{n:024}",
                created_at=1_700_000_000 + n,
                job_id=f"ftjob-{0:024}",
                seq=n + 1,
                level="info",
                message=f"Step {n}/{events}: training loss=0.12",
                type="metrics",
                data={"step": n, "total_steps": events, "train_loss": 0.12},
            )
            for n in range(events)
        ]
    )
    store.close()


def pages(connection: http.client.HTTPConnection, path: str, limit: int) -> tuple[list[float], int]:
    """Seconds of each request that pages through a list, and the number of objects."""
    seconds, seen, after = [], set(), ""
    while True:
        began = time.perf_counter()
        found = asked(connection, "GET", f"{path}?limit={limit}{after}")
        seconds.append(time.perf_counter() - began)
        seen |= {one["id"] for one in found["data"]}
        if not found["has_more"]:
            return seconds, len(seen)
        after = f"&after={found['data'][-1]['id']}"


def repeated(times: int, call: Callable[[int], Any]) -> list[float]:
    """Seconds of each of so many calls."""
    seconds = []
    for n in range(times):
        began = time.perf_counter()
        call(n)
        seconds.append(time.perf_counter() - began)
    return seconds


def told(what: str, seconds: Sequence[float], objects: int) -> dict[str, Any]:
    """The figures of one kind of request, in milliseconds."""
    ordered = sorted(seconds)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return {
        "what": what,
        "requests": len(ordered),
        "objects": objects,
        "median_ms": round(1000 * statistics.median(ordered), 2),
        "p95_ms": round(1000 * p95, 2),
        "max_ms": round(1000 * ordered[-1], 2),
        "met": p95 < LIMIT,
    }


def measure(uploads: int, jobs: int, events: int) -> list[dict[str, Any]]:
    """All figures, on a new store."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        fill(home, jobs, events)
        with client_of(home) as connection:
            kind = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
            bodies = [form(12, n) for n in range(uploads + 1)]
            asked(connection, "POST", "/v1/files", bodies.pop(), **kind)
            sent = repeated(uploads, lambda n: asked(connection, "POST", "/v1/files", bodies[n], **kind))
            listed, files = [], 0
            for _ in range(_TIMES):
                more, files = pages(connection, "/v1/files", 10_000)
                listed += more
            by_job, found = [], 0
            for _ in range(_TIMES):
                more, found = pages(connection, "/v1/fine_tuning/jobs", _PAGE)
                by_job += more
            by_event, seen = pages(connection, f"/v1/fine_tuning/jobs/ftjob-{0:024}/events", _PAGE)
    if (files, found, seen) != (uploads + 1, jobs, events):
        raise SystemExit(f"the lists were not complete: {files} files, {found} jobs, {seen} events")
    return [
        told("upload a file of 12 rows", sent, uploads),
        told(f"list all {files:,} files", listed, files),
        told(f"list {jobs} jobs, {_PAGE} on a page", by_job, jobs),
        told(f"page through {events:,} events, {_PAGE} on a page", by_event, events),
    ]


def page(report: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = [
        "# Keeping and listing",
        "",
        "Written by `python benchmarks/service_store.py`; do not edit. One client, one connection, a server of its own",
        f"on SQLite, {report['machine']}, load {report['load_before']} before.",
        f"Asked: 95 % of the requests of each kind under {1000 * LIMIT:.0f} ms.",
        "",
        "| what | requests | median, ms | 95th percentile, ms | longest, ms | |",
        "|---|---|---|---|---|---|",
    ]
    for one in report["figures"]:
        verdict = "reached" if one["met"] else "**not reached**"
        figures = f"{one['median_ms']} | {one['p95_ms']} | {one['max_ms']}"
        lines.append(f"| {one['what']} | {one['requests']:,} | {figures} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=1_000)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--events", type=int, default=50_000)
    default = HERE / "results" / f"service_store-{datetime.date.today().isoformat()}.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--page", type=Path, default=HERE / "service_store.md")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(os.getloadavg()[0], 2),
        "figures": measure(options.uploads, options.jobs, options.events),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    options.page.write_text(page(report), encoding="utf-8")
    print(page(report))
    if not all(one["met"] for one in report["figures"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
