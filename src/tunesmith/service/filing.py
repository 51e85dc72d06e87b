"""What is done with files: taken in, listed, read, expired, deleted. Their bytes are blobs; records say what they are.

A file that is deleted is gone for everybody at once, but stays on the disk until no job or batch works with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError, invalid, not_found
from tunesmith.service.file_checks import look_at
from tunesmith.service.file_checks_apart import look_at_apart
from tunesmith.service.ids import Flavour, azure_id, new_id
from tunesmith.service.store.interface import AtMost, Blobs, BlobWriter, Found, Page, Store
from tunesmith.service.store.nouns import Batch, EvalRun, File, Job, UploadPart
from tunesmith.service.validation import Problem, refusal

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""Of files that are uploaded; those that the service makes are `fine-tune-results` and `batch_output`."""
SHORTEST_LIFE, LONGEST_LIFE = 3_600, 2_592_000
"""Of `expires_after`, in seconds."""
LONGEST_NAME = 500
_SMALLER = "Use fewer rows, or several files."
LARGEST_HERE = 2_000_000
"""Bytes of a file that is looked at in this process."""
DELETED = "deleted"
"""Status of a file that its owner has deleted and a job still reads."""

_SHOWN = {"status": ("processed", "uploaded", "pending", "running", "error")}
_BLOBS_OF: Mapping[type[Any], str] = {File: "blob", UploadPart: "blob", EvalRun: "items"}
"""Which field of which record names a blob."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is to be taken in, apart from its bytes. `lasts`: seconds until it expires; None: for ever."""

    filename: str
    purpose: str
    lasts: int | None = None
    flavour: Flavour = "openai"


def create_file(
    service: Service,
    new: NewFile,
    writer: BlobWriter,
    *,
    id: str | None = None,
    in_parts: bool = False,
    repeats_since: int | None = None,
) -> File:
    """Take in a file whose bytes the writer has; they are looked at before anything is kept.

    Raises `ApiError` 400 or 413 with every reason why it cannot be taken; nothing is left of it then. `id` makes a
    repetition harmless: the file that has it already is returned. `in_parts`: see `largest`. `repeats_since`: the
    client says that it asks again; an equal file that was made at this time or later is the answer it missed.
    """
    try:
        check_new(new)
        check_size(largest(service, new.purpose, in_parts=in_parts), writer.size, _SMALLER)
        path = writer.written()
        report = looked_at(path, new)
        file = _record(service.now(), new, writer.size, writer.finish(hold=True), report=report, id=id)
        missed = _equal(service.store, file, repeats_since) if repeats_since is not None else None
        if missed is not None:
            return missed
        try:
            service.store.add(file)
        except ValueError:
            known = service.store.get(File, file.id)
            if id is None or known is None:
                raise
            if known.blob != file.blob:
                raise invalid(f"File {id} is there already, with other bytes.", param="file") from None
            return known
        return file
    finally:
        writer.abandon()


def _equal(store: Store, file: File, since: int) -> File | None:
    """The newest file of the same bytes, name and purpose that is not older."""
    same = {"blob": file.blob, "filename": file.filename, "purpose": file.purpose, "flavour": file.flavour}
    found = store.page(File, Page(limit=1), {**_SHOWN, **same}).items
    return found[0] if found and found[0].created_at >= since else None


def keep_file(
    store: Store, blobs: Blobs, new: NewFile, data: bytes | Path | Iterable[bytes], *, now: int, id: str | None = None
) -> File:
    """Keep a file that the service itself has made (results, output of a batch). With an `id` that is there already,
    the file as it was kept then is returned.
    """
    if id is not None and (known := store.get(File, id)) is not None:
        return known
    writer = blobs.writer()
    try:
        for piece in _pieces(data):
            writer.write(piece)
        file = _record(now, new, writer.size, writer.finish(hold=True), id=id)
        store.add(file)
        return file
    finally:
        writer.abandon()


def get_file(service: Service, id: str) -> File:
    """Raises `ApiError` 404 where there is none, or none any more."""
    file = service.store.get(File, id)
    if file is None or file.status == DELETED or _is_over(file.expires_at, service.now()):
        raise not_found("File object", id)
    return file


def list_files(service: Service, page: Page, purpose: str | None = None) -> Found[File]:
    """A page of the files that are there, without their reports; raises `UnknownCursorError`."""
    remove_expired(service)
    where = _SHOWN if purpose is None else {**_SHOWN, "purpose": purpose}
    return service.store.page(File, page, where, without=("report",))


def file_path(service: Service, file: File) -> Path:
    """Where the bytes of a file lie. Raises `ApiError`: 400 while there are none, 404 where the file was deleted since,
    500 where the server has lost them.
    """
    if file.blob is None:
        raise invalid(f"File {file.id} is not ready: its status is {file.status}.", param="id")
    try:
        return service.blobs.path(file.blob)
    except KeyError:
        get_file(service, file.id)
        message = f"The content of file {file.id} cannot be read on the server."
        raise ApiError(500, message, param="id", code="server_error") from None


def delete_file(service: Service, id: str) -> File:
    """Delete a file; raises `ApiError` 404 where there is none."""
    file = get_file(service, id)
    if _in_use(service.store, id):
        service.store.update(File, id, status=DELETED)
    else:
        service.store.remove(File, id)
        drop_blob(service, file.blob)
    return file


def drop_blob(service: Service, sha: str | None) -> None:
    """Remove bytes that no record names any more."""
    if sha is not None:
        service.blobs.remove(sha, lambda: not _is_named(service.store, sha))


def remove_expired(service: Service) -> int:
    """Delete the files whose time is over; returns how many."""
    over = service.store.all(File, {**_SHOWN, "expires_at": AtMost(service.now())})
    for file in over:
        if _in_use(service.store, file.id):
            service.store.update(File, file.id, status=DELETED)
        elif service.store.remove(File, file.id):
            drop_blob(service, file.blob)
    return len(over)


def sweep(service: Service) -> int:
    """What is to be done from time to time, and when a server starts: end uploads and files whose time is over, and
    remove bytes that no record names. Returns the number of blobs removed.
    """
    from tunesmith.service.uploading import end_expired_uploads

    end_expired_uploads(service)
    remove_expired(service)
    for file in service.store.all(File, {"status": DELETED}):
        if not _in_use(service.store, file.id):
            service.store.remove(File, file.id)
    return service.blobs.remove_unused(lambda sha: _is_named(service.store, sha))


def check_new(new: NewFile) -> None:
    """Raises `ApiError` 400 for a purpose, a name or a time that cannot be; all of them at once."""
    problems = []
    if new.purpose not in PURPOSES:
        allowed = ", ".join(f"'{one}'" for one in PURPOSES)
        problems.append(_not(f"'purpose': '{new.purpose[:80]}'. Supported values are: {allowed}.", "purpose"))
    if not new.filename or len(new.filename) > LONGEST_NAME or not new.filename.isprintable():
        wanted = f"1 to {LONGEST_NAME} printable characters"
        problems.append(_not(f"'filename': expected {wanted}, but got {new.filename[:40]!r} instead.", "filename"))
    if new.lasts is not None and not SHORTEST_LIFE <= new.lasts <= LONGEST_LIFE:
        name, wanted = "expires_after[seconds]", f"a value >= {SHORTEST_LIFE} and <= {LONGEST_LIFE}"
        problems.append(_not(f"'{name}': expected {wanted}, but got {new.lasts} instead.", name))
    if problems:
        raise refusal(problems)


def _not(told: str, param: str) -> Problem:
    return Problem(f"Invalid value for {told}", param, "invalid_value")


def largest(service: Service, purpose: str | None, *, in_parts: bool = False) -> int:
    """Most bytes of an uploaded file. Rows of jobs and batches are read whole: they may not be more in parts."""
    limits = service.settings.limits
    if purpose == "batch":
        return min(limits.batch_file, limits.file)
    return limits.upload if in_parts and purpose != "fine-tune" else limits.file


def check_size(most: int, size: int, fix: str = "Split it, or upload it in parts with POST /v1/uploads.") -> None:
    """Raises `ApiError` 413 for more than `most` bytes."""
    if size > most:
        raise ApiError(
            413,
            f"The file is too large: it may have {most:,} bytes ({most / 1e6:,.0f} MB). {fix}",
            param="file",
            code="content_too_large",
        )


def looked_at(path: Path, new: NewFile) -> Mapping[str, Any] | None:
    """The report on a file, None for a purpose that has no rules. Raises `ApiError` where the file cannot be taken.

    A large one is looked at by a process of its own, so that it does not hold up everybody else's answers.
    """
    look = look_at if path.stat().st_size <= LARGEST_HERE else look_at_apart
    return look(path, new.filename, new.purpose, new.flavour)


def _record(
    now: int, new: NewFile, size: int, sha: str, *, report: Mapping[str, Any] | None = None, id: str | None = None
) -> File:
    return File(
        id=id or (azure_id("file") if new.flavour == "azure" else new_id("file")),
        created_at=now,
        filename=new.filename,
        purpose=new.purpose,
        bytes=size,
        blob=sha,
        expires_at=None if new.lasts is None else now + new.lasts,
        report=report,
        flavour=new.flavour,
    )


def _pieces(data: bytes | Path | Iterable[bytes]) -> Iterable[bytes]:
    if isinstance(data, bytes):
        yield data
    elif isinstance(data, Path):
        with data.open("rb") as source:
            while piece := source.read(1 << 20):
                yield piece
    else:
        yield from data


def _is_over(expires_at: int | None, now: int) -> bool:
    return expires_at is not None and expires_at <= now


def _in_use(store: Store, id: str) -> bool:
    """Whether a job or a batch has yet to read a file; evidence is read from a job's files after its success."""
    going: Mapping[str, Any] = {"status": ("validating_files", "queued", "running", "paused")}
    proving: Mapping[str, Any] = {"status": "succeeded", "evidence": ("pending", "running")}
    jobs = any(
        store.count(Job, {**state, part: id})
        for state in (going, proving)
        for part in ("training_file", "validation_file")
    )
    batches = {"input_file_id": id, "status": ("validating", "in_progress", "finalizing", "cancelling")}
    return jobs or store.count(Batch, batches) > 0


def _is_named(store: Store, sha: str) -> bool:
    return any(store.count(kind, {field: sha}) for kind, field in _BLOBS_OF.items())
