"""Pulling everything of an account into a folder, while the service still answers.

It can be stopped and started at any time: lists are asked for again, but bytes that are there, and jobs whose end is
known, are not. What the service does not offer any more (evals after their end) is noted and left out; everything else
is still pulled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.runs.atomic import staged_file, write_bytes, write_json
from tunesmith.service.json_lines import json_lines
from tunesmith.service.moving import layout
from tunesmith.service.moving.asking import Asker, GoneError, part

_PURPOSES = frozenset({"fine-tune", "fine-tune-results", "evals", "batch", "batch_output"})
"""Files that belong to tuning and evaluation; what assistants and images were made of is left where it is."""
_ENDED = frozenset({"succeeded", "failed", "cancelled"})
_SAVE_EVERY = 100
Tell = Callable[[str], None]


@dataclass(slots=True)
class Pulled:
    """What was pulled and what was there already; `missing` says what could not be had, and why."""

    files: int = 0
    jobs: int = 0
    evals: int = 0
    completions: int = 0
    models: int = 0
    kept: int = 0
    missing: list[str] = field(default_factory=list)


def pull(asker: Asker, folder: Path, tell: Tell = lambda _: None) -> Pulled:
    """Write an export into `folder`, or go on with one. Raises `EngineError` for a key that is refused, `ResourceError`
    where the disk or the service fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = Pulled()
    for what, pulling in (
        ("jobs", _jobs), ("files", _files), ("models", _models), ("evals", _evals), ("stored completions", _completions)
    ):  # fmt: skip
        with _noted(done, what):
            pulling(asker, folder, done, tell)
    about = {
        "source": asker.url,
        "pulled_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": {name: getattr(done, name) for name in ("files", "jobs", "evals", "completions", "models")},
        "missing": done.missing,
    }
    write_json(folder / layout.ABOUT, about)
    return done


def _jobs(asker: Asker, folder: Path, done: Pulled, tell: Tell) -> None:
    for job in asker.pages("/fine_tuning/jobs"):
        id = str(job["id"])
        done.jobs += 1
        place = layout.job_folder(folder, id)
        if _status(place / "job.json") in _ENDED:
            done.kept += 1
            continue
        tell(f"job {id}")
        with _noted(done, f"events of {id}"):
            events = list(asker.pages(f"/fine_tuning/jobs/{part(id)}/events"))
            write_bytes(place / "events.jsonl", json_lines(reversed(events)))
        with _noted(done, f"checkpoints of {id}"):
            checkpoints = list(asker.pages(f"/fine_tuning/jobs/{part(id)}/checkpoints"))
            write_json(place / "checkpoints.json", checkpoints)
        write_json(place / "job.json", job)


def _files(asker: Asker, folder: Path, done: Pulled, tell: Tell) -> None:
    files = [one for one in asker.pages("/files", limit=10_000) if one.get("purpose") in _PURPOSES]
    write_json(folder / layout.FILES_LIST, files)
    for file in files:
        id = str(file["id"])
        done.files += 1
        path = layout.file_path(folder, id, str(file.get("filename", "")))
        if path.is_file():
            done.kept += 1
            continue
        tell(f"file {id} ({file.get('filename')}, {int(file.get('bytes') or 0):,} bytes)")
        with _noted(done, f"file {id} ({file.get('filename')})"):
            _content(asker, id, path)


def _content(asker: Asker, id: str, path: Path) -> None:
    """Whole or not at all, so that what is there need not be looked at again."""
    with staged_file(path) as staged, staged.open("wb") as target:
        for piece in asker.pieces(f"/files/{part(id)}/content"):
            target.write(piece)


def _models(asker: Asker, folder: Path, done: Pulled, tell: Tell) -> None:
    listed = asker.ask("/models").get("data", [])
    tuned = [one for one in listed if str(one.get("id", "")).startswith("ft:") or ".ft-" in str(one.get("id", ""))]
    done.models = len(tuned)
    write_json(folder / layout.MODELS, tuned)


def _evals(asker: Asker, folder: Path, done: Pulled, tell: Tell) -> None:
    for one in asker.pages("/evals"):
        id = str(one["id"])
        place = layout.eval_folder(folder, id)
        done.evals += 1
        tell(f"eval {id}")
        with _noted(done, f"runs of {id}"):
            for run in asker.pages(f"/evals/{part(id)}/runs"):
                _run(asker, place / "runs", id, run, done)
        write_json(place / "eval.json", one)


def _run(asker: Asker, folder: Path, eval_id: str, run: Mapping[str, Any], done: Pulled) -> None:
    id = str(run["id"])
    path = folder / f"{layout.name_of(id)}.json"
    if _status(path) in ("completed", "failed", "canceled"):
        done.kept += 1
        return
    with _noted(done, f"items of {id}"):
        items = asker.pages(f"/evals/{part(eval_id)}/runs/{part(id)}/output_items")
        write_bytes(folder / f"{path.stem}-items.jsonl", json_lines(items))
    write_json(path, run)


def _completions(asker: Asker, folder: Path, done: Pulled, tell: Tell) -> None:
    path = folder / layout.COMPLETIONS
    known = {one["id"]: one for one in read_lines(path)} if path.is_file() else {}
    for one in asker.pages("/chat/completions", order="asc"):
        done.completions += 1
        if one["id"] in known:
            done.kept += 1
            continue
        with _noted(done, f"messages of {one['id']}"):
            messages = list(asker.pages(f"/chat/completions/{part(str(one['id']))}/messages", order="asc"))
            known[one["id"]] = {**one, "messages": messages}
            if len(known) % _SAVE_EVERY == 0:
                write_bytes(path, json_lines(known.values()))
    if known:
        write_bytes(path, json_lines(known.values()))


def read_lines(path: Path) -> Sequence[Mapping[str, Any]]:
    """JSON lines of ours. Raises `TunesmithError` where one was changed into something else."""
    try:
        with path.open(encoding="utf-8") as lines:  # and not `splitlines`, which ends lines within texts too
            return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise TunesmithError("this is no JSON lines any more", where=str(path), fix="move it away") from error


def _status(path: Path) -> str | None:
    """The status that a kept object has; None where there is none, or it was cut off."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("status") if isinstance(found, dict) else None


@contextmanager
def _noted(done: Pulled, what: str) -> Iterator[None]:
    """What is not offered any more is noted, and the rest goes on."""
    try:
        yield
    except GoneError as error:
        done.missing.append(f"{what}: {error.what}")
