"""A batch from its input file to its result files.

Rows are answered by the routes that clients use and journalled one by one; a batch that was broken off goes on with the
rows that are not in its journal. The result files are named before they are written, so that writing them again after a
crash makes no second pair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.service.batches.checking import Checked, check_input, request_at, route_of
from tunesmith.service.batches.journal import Journal
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.filing import NewFile, keep_file
from tunesmith.service.gate import Gate
from tunesmith.service.ids import new_id
from tunesmith.service.inner import Post
from tunesmith.service.json_lines import json_line
from tunesmith.service.store.nouns import Batch, File
from tunesmith.service.threads import whole

RUNNING = ("validating", "in_progress", "finalizing")
"""States of a batch that goes on and is not to be cancelled."""
_TELL_EVERY = 1.0
"""Seconds between two notes of how far a batch is."""
NEVER_RUN = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


@dataclass(slots=True)
class Tally:
    """Counts of finished rows."""

    total: int
    completed: int = 0
    failed: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        if _is_failed(row):
            self.failed += 1
        else:
            self.completed += 1

    def json(self) -> dict[str, int]:
        return {"total": self.total, "completed": self.completed, "failed": self.failed}


async def run_batch(service: Service, post: Post, gate: Gate, batch: Batch) -> None:
    """Do what is left of a batch and conclude it. Cancelling leaves the journal."""
    path = await asyncio.to_thread(_input_of, service, batch)
    if path is None:
        gone = {"code": "file_not_found", "message": "The input file is no longer there.", "param": None, "line": None}
        await _move(service, batch.id, "failed", RUNNING, errors={"object": "list", "data": [gone]})
        return
    # A model that is deleted while its batch runs is an error of the rows that still ask it.
    unknown = partial(_unknown_model, service) if batch.status == "validating" else None
    checked = await asyncio.to_thread(check_input, path, batch.endpoint, unknown)
    if checked.errors:
        told = {"object": "list", "data": [error.json() for error in checked.errors]}
        await _move(service, batch.id, "failed", RUNNING, errors=told)
        return
    if batch.status != "finalizing":
        await _answer_all(service, post, gate, batch, path, checked)
    await conclude(service, batch.id, path, checked, "completed")


async def settle_batch(service: Service, batch: Batch) -> None:
    """Conclude a batch that is to be cancelled."""
    path = await asyncio.to_thread(_input_of, service, batch)
    if path is None:
        await _move(service, batch.id, "cancelled", ("cancelling",))
        return
    checked = await asyncio.to_thread(check_input, path, batch.endpoint)
    if checked.errors:  # cancelled before it was checked, and not to be run anyhow
        await _move(service, batch.id, "cancelled", ("cancelling",))
        return
    await conclude(service, batch.id, path, checked, "cancelled")


async def _answer_all(service: Service, post: Post, gate: Gate, batch: Batch, path: Path, checked: Checked) -> None:
    journal = await asyncio.to_thread(Journal, journal_path(service, batch))
    try:
        tally, _ = await asyncio.to_thread(_tallied, journal, checked)
        if batch.status == "validating":
            fields = {"request_counts": tally.json(), "model": checked.model}
            await _move(service, batch.id, "in_progress", ("validating",), **fields)

        told = time.monotonic()

        async def do(place: int) -> None:
            nonlocal told
            async with gate.place():
                if service.now() >= batch.moments["expires_at"]:
                    return
                asked = await asyncio.to_thread(request_at, path, checked.offsets[place])
                reply = await post(route_of(batch.endpoint), asked["body"])
            row = _row(asked["custom_id"], reply.status, reply.body)
            await whole(journal.add, place, row)
            tally.add(row)
            if time.monotonic() - told >= _TELL_EVERY:
                told = time.monotonic()
                await asyncio.to_thread(service.store.update, Batch, batch.id, request_counts=tally.json())

        done = journal.places
        await gate.each(do, (place for place in range(len(checked.offsets)) if place not in done))
    finally:
        journal.close()


async def conclude(service: Service, id: str, path: Path, checked: Checked, status: str) -> None:
    """Write the result files and end the batch; with requests that were never begun it is not `completed`."""
    await whole(_conclude, service, id, path, checked, status)


def _conclude(service: Service, id: str, path: Path, checked: Checked, status: str) -> None:
    batch = service.store.get(Batch, id)
    if batch is None:
        return
    with closing(Journal(journal_path(service, batch))) as journal:
        tally, usage = _tallied(journal, checked)
        done = journal.places
        never_run = [place for place in range(len(checked.offsets)) if place not in done]
        if never_run and status == "completed":
            status = "expired"
        going = "cancelling" if status == "cancelled" else "finalizing"
        named = _name_files(service, batch, going, bool(tally.completed), bool(tally.failed or never_run))
        if named is None:
            return  # it is to be cancelled meanwhile, and will be concluded as such
        failed = _with_never_run(_lines(journal, failed=True), path, checked, never_run, status)
        _keep_lines(service, named, "output", named.output_file_id, _lines(journal, failed=False))
        _keep_lines(service, named, "error", named.error_file_id, failed)
        counts = tally.json()
        if status == "expired":
            counts["failed"] += len(never_run)
        moments = {**named.moments, f"{status}_at": service.now()}
        fields = {"moments": moments, "request_counts": counts, "usage": usage.json()}
        if service.store.move(Batch, id, status, only_from=(going,), **fields) is not None:
            journal.remove()


def _tallied(journal: Journal, checked: Checked) -> tuple[Tally, _Usage]:
    tally, usage = Tally(len(checked.offsets)), _Usage()
    for _, row in journal.rows():
        tally.add(row)
        usage.add(row)
    return tally, usage


def _name_files(service: Service, batch: Batch, going: str, output: bool, error: bool) -> Batch | None:
    """Give the result files their names before they are written: whoever concludes the batch once more, after a crash,
    writes the same two. None where the batch is no longer to be concluded so.
    """
    moments = {"finalizing_at": service.now(), **batch.moments} if going == "finalizing" else batch.moments
    return service.store.move(
        Batch,
        batch.id,
        going,
        only_from=RUNNING if going == "finalizing" else ("cancelling",),
        moments=moments,
        output_file_id=batch.output_file_id or (new_id("file") if output else None),
        error_file_id=batch.error_file_id or (new_id("file") if error else None),
    )


def _keep_lines(service: Service, batch: Batch, name: str, id: str | None, lines: Iterator[dict[str, Any]]) -> None:
    if id is not None:
        new = NewFile(f"{batch.id}_{name}.jsonl", "batch_output", batch.output_seconds)
        keep_file(service.store, service.blobs, new, map(json_line, lines), now=service.now(), id=id)


def _lines(journal: Journal, *, failed: bool) -> Iterator[dict[str, Any]]:
    return (row for _, row in journal.rows() if _is_failed(row) == failed)


def _with_never_run(
    lines: Iterator[dict[str, Any]], path: Path, checked: Checked, places: list[int], status: str
) -> Iterator[dict[str, Any]]:
    """The failed rows, then one for each request that was not begun."""
    yield from lines
    for place in places:
        code, message = NEVER_RUN[status]
        custom_id = request_at(path, checked.offsets[place])["custom_id"]
        yield {
            "id": new_id("batch_req", separator="_"),
            "custom_id": custom_id,
            "response": None,
            "error": {"code": code, "message": message},
        }


def _row(custom_id: str, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a result file."""
    return {
        "id": new_id("batch_req", separator="_"),
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": new_id("req", separator="_"), "body": body},
        "error": None,
    }


def _is_failed(row: Mapping[str, Any]) -> bool:
    response = row["response"]
    return response is None or response["status_code"] != 200


class _Usage:
    """Tokens of all rows, in the fields of a batch."""

    def __init__(self) -> None:
        self.input = self.cached = self.output = 0

    def add(self, row: Mapping[str, Any]) -> None:
        usage = (row["response"] or {}).get("body", {}).get("usage") or {}
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        self.input += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        self.output += usage.get("completion_tokens", usage.get("output_tokens", 0))
        self.cached += details.get("cached_tokens") or 0

    def json(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input + self.output,
        }


def journal_path(service: Service, batch: Batch) -> Path:
    """Named after the batch's id as the store has it."""
    return service.settings.home / "batches" / f"{batch.id}.jsonl"


def _input_of(service: Service, batch: Batch) -> Path | None:
    file = service.store.get(File, batch.input_file_id)
    if file is None or file.blob is None:
        return None
    try:
        path: Path = service.blobs.path(file.blob)
    except KeyError:
        return None
    return path


def _unknown_model(service: Service, name: str) -> str | None:
    """Why a model cannot be asked."""
    try:
        service.catalogue.resolve(name)
    except ApiError as error:
        return error.message
    return None


async def _move(service: Service, id: str, status: str, only_from: tuple[str, ...], **changes: Any) -> Batch | None:
    """Change the status and note when."""

    def write() -> Batch | None:
        batch = service.store.get(Batch, id)
        if batch is None:
            return None
        moments = {**batch.moments, f"{status}_at": service.now()}
        return service.store.move(Batch, id, status, only_from=only_from, moments=moments, **changes)

    return await asyncio.to_thread(write)
