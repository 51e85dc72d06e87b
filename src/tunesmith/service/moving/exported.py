"""Reading an export: jobs with their events and checkpoints, files, evals with their runs, stored completions."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.service.moving import layout
from tunesmith.service.moving.told import fault_of

Json = Mapping[str, Any]

_JOB = re.compile(r"ftjob-[A-Za-z0-9]+")
_RUN = re.compile(r"evalrun_[A-Za-z0-9]+")
_KINDS = {
    "fine_tuning.job": "jobs",
    "fine_tuning.job.event": "events",
    "fine_tuning.job.checkpoint": "checkpoints",
    "file": "files",
    "eval": "evals",
    "eval.run": "runs",
    "eval.run.output_item": "items",
    "chat.completion": "completions",
}
_LARGEST_JSON = 200_000_000
_CSV = b"step,"


@dataclass(frozen=True, slots=True)
class ExportedJob:
    """A job as the API told it. `events` are oldest first, each once. Files are paths where their bytes are there."""

    id: str
    told: Json
    events: tuple[Json, ...]
    checkpoints: tuple[Json, ...]
    training: Path | None
    validation: Path | None
    results: Path | None


@dataclass(frozen=True, slots=True)
class ExportedEval:
    """An eval with its runs, and by run the items that it looked at."""

    id: str
    told: Json
    runs: tuple[Json, ...]
    items: Mapping[str, tuple[Json, ...]]


@dataclass(frozen=True, slots=True)
class Export:
    """Everything that was found. `problems` are what could not be read, each with its place."""

    folder: Path
    jobs: tuple[ExportedJob, ...]
    evals: tuple[ExportedEval, ...]
    completions: tuple[Json, ...]
    files: Mapping[str, Path]
    problems: tuple[str, ...]


def read_export(folder: Path) -> Export:
    """What is in a folder: see `layout`. Raises `DataError` where there is no such folder, or nothing of the kind in
    it.
    """
    if not folder.is_dir():
        raise DataError(
            "there is no such folder",
            where=str(folder),
            expected="a folder with what was exported",
            fix=f"tunesmith import openai --pull --out {folder}",
        )
    problems: list[str] = []
    found: dict[str, list[tuple[Path, Json]]] = defaultdict(list)
    for path in sorted(one for one in folder.rglob("*") if one.suffix in (".json", ".jsonl") and one.is_file()):
        for told in _objects(path, problems):
            kind = _KINDS.get(str(told.get("object")))
            if kind is None:
                continue
            fault = fault_of(kind, told)
            if fault is None:
                found[kind].append((path, told))
            else:
                problems.append(fault)
    if not (found["jobs"] or found["evals"] or found["completions"]):
        seen = "; ".join(problems[:5])
        raise DataError(
            "there is no fine-tuning job, eval or stored completion" + (f" ({seen})" if seen else ""),
            where=str(folder),
            expected="JSON as the API answers with, its `object` fields included",
            fix=f"tunesmith import openai --pull --out {folder}",
        )
    files = _contents(folder, [told for _, told in found["files"]])
    jobs = _unique(found["jobs"])
    owners = _owners(found["events"], jobs)
    return Export(
        folder,
        tuple(_job(told, found, files, owners) for told in jobs),
        tuple(_eval(told, found) for told in _unique(found["evals"])),
        tuple(_unique(found["completions"])),
        files,
        tuple(problems),
    )


def results_csv(path: Path) -> bytes | None:
    """The bytes of a result file as CSV, whether they were kept plain or in base64; None where they are neither."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data.startswith(_CSV):
        return data
    try:
        decoded = base64.b64decode(data.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return decoded if decoded.startswith(_CSV) else None


def _objects(path: Path, problems: list[str]) -> Iterator[Json]:
    """The JSON objects of a file that could be the API's; rows of training data have no `object` and are none."""
    if path.stat().st_size > _LARGEST_JSON:
        return
    try:
        if path.suffix == ".jsonl":
            yield from _of_lines(path)
        else:
            yield from _of_value(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} is no JSON: {str(error)[:80]}")


def _of_lines(path: Path) -> Iterator[Json]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                if number == 1:
                    return  # rows, which their own check looks at
                raise
            if not isinstance(value, dict) or "object" not in value:
                return
            yield value


def _of_value(value: Any) -> Iterator[Json]:
    if isinstance(value, list):
        for one in value:
            yield from _of_value(one)
    elif isinstance(value, dict):
        if isinstance(value.get("data"), list) and value.get("object") in ("list", None):
            yield from _of_value(value["data"])
        else:
            yield value


def _unique(found: Sequence[tuple[Path, Json]]) -> list[Json]:
    """Each object once, by its id; of several the last that was read, oldest first."""
    known = {str(told.get("id")): told for _, told in found}
    return sorted(known.values(), key=lambda told: told.get("created_at") or told.get("created") or 0)


def _contents(folder: Path, files: Sequence[Json]) -> dict[str, Path]:
    """Where the bytes of each file lie: by its id, else by the name that it alone was uploaded under."""
    here = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    by_part: dict[str, Path] = {}
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in here:
        by_name[path.name].append(path)
        for known in (path.stem, path.name, *path.relative_to(folder).parts[:-1]):
            if known.startswith("file-"):
                by_part.setdefault(known, path)
    contents = dict(by_part)
    names = [str(told.get("filename")) for told in files]
    for told in files:
        id, name = str(told.get("id")), str(told.get("filename"))
        if layout.name_of(id) in by_part:
            contents[id] = by_part[layout.name_of(id)]
        elif id not in contents and names.count(name) == 1 and len(by_name[name]) == 1:
            contents[id] = by_name[name][0]
    return contents


def _job(
    told: Json, found: Mapping[str, list[tuple[Path, Json]]], files: Mapping[str, Path], owners: Mapping[Path, str]
) -> ExportedJob:
    id = str(told.get("id"))
    events = [event for path, event in found["events"] if owners.get(path) == id]
    checkpoints = {str(one.get("id")): one for _, one in found["checkpoints"] if one.get("fine_tuning_job_id") == id}
    results = [files[one] for one in told.get("result_files") or () if one in files]
    return ExportedJob(
        id,
        told,
        tuple(_in_order(events)),
        tuple(sorted(checkpoints.values(), key=lambda one: one.get("step_number") or 0)),
        files.get(str(told.get("training_file"))),
        files.get(str(told.get("validation_file"))),
        results[0] if results else None,
    )


def _owners(events: Sequence[tuple[Path, Json]], jobs: Sequence[Json]) -> dict[Path, str]:
    """Whose events a file holds, which they do not say themselves: by a job's id in the path, or in one of the
    messages; where there is one job alone, they are its.
    """
    owners: dict[Path, str] = {}
    told: dict[Path, set[str]] = defaultdict(set)
    for path, event in events:
        told[path] |= set(_JOB.findall(str(event.get("message"))))
    for path, ids in told.items():
        named = _JOB.findall(str(path))
        if named:
            owners[path] = named[-1]
        elif len(ids) == 1:
            owners[path] = next(iter(ids))
        elif len(jobs) == 1:
            owners[path] = str(jobs[0].get("id"))
    return owners


def _in_order(events: Sequence[Json]) -> list[Json]:
    """Oldest first, each once. Lists of the API are newest first; equal seconds keep the order of their list."""
    known = {str(event.get("id")): event for event in events}
    listed = list(known.values())
    times = [event.get("created_at") or 0 for event in listed]
    if times and times[0] > times[-1]:
        listed.reverse()
    return sorted(listed, key=lambda event: event.get("created_at") or 0)


def _eval(told: Json, found: Mapping[str, list[tuple[Path, Json]]]) -> ExportedEval:
    id = str(told.get("id"))
    runs = _unique([(path, run) for path, run in found["runs"] if run.get("eval_id") == id])
    ids = {str(run.get("id")) for run in runs}
    items: dict[str, list[Json]] = defaultdict(list)
    for path, item in found["items"]:
        run = str(item.get("run_id") or next(iter(_RUN.findall(str(path))[-1:]), ""))
        if run in ids:
            items[run].append(item)
    return ExportedEval(id, told, tuple(runs), {run: tuple(one) for run, one in items.items()})
