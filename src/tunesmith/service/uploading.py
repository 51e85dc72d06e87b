"""Files that come in parts: begun, filled, completed into a file, cancelled, or left to expire after an hour."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunesmith.service.context import Service
from tunesmith.service.errors import invalid, not_found
from tunesmith.service.filing import NewFile, check_new, check_size, create_file, drop_blob, largest
from tunesmith.service.ids import azure_id, new_id
from tunesmith.service.store.interface import AtMost, BlobWriter
from tunesmith.service.store.nouns import File, Upload, UploadPart

SECONDS = 3_600
"""An upload that is not completed by then has expired."""
SMALLER_PARTS = "Send more and smaller parts."
_PIECE = 1 << 20
_NOT_COMPLETED = "cannot be completed"


def create_upload(service: Service, new: NewFile, size: int, mime_type: str) -> Upload:
    """Begin an upload of `size` bytes. Raises `ApiError` 400."""
    check_new(new)
    most = largest(service, new.purpose, in_parts=True)
    if not 1 <= size <= most:
        raise invalid(
            f"Invalid value for 'bytes': expected a value >= 1 and <= {most}, but got {size} instead.",
            param="bytes",
            code="invalid_value",
        )
    now = service.now()
    upload = Upload(
        id=new_id("upload", separator="_"),
        created_at=now,
        filename=new.filename,
        purpose=new.purpose,
        bytes=size,
        mime_type=mime_type,
        status="pending",
        expires_at=now + SECONDS,
        file_id=azure_id("file") if new.flavour == "azure" else new_id("file"),
        file_expires_after=new.lasts,
        flavour=new.flavour,
    )
    service.store.add(upload)
    return upload


def get_upload(service: Service, id: str) -> Upload:
    """With the status `expired` once its hour is over. Raises `ApiError` 404."""
    upload = service.store.get(Upload, id)
    if upload is None:
        raise not_found("Upload object", id, param="upload_id")
    if upload.status == "pending" and upload.expires_at <= service.now():
        return replace(upload, status="expired")
    return upload


def file_of(service: Service, upload: Upload) -> File | None:
    """The file that an upload has become; None before that, and after the file was deleted."""
    return service.store.get(File, upload.file_id) if upload.status == "completed" else None


def open_upload(service: Service, id: str, but: str = "takes no more parts") -> Upload:
    """An upload that is not over. Raises `ApiError` 404, or 400 with what it does not do any more."""
    upload = get_upload(service, id)
    if upload.status != "pending":
        raise invalid(f"Upload {id} is {upload.status}, and {but}.", param="upload_id")
    return upload


def add_part(service: Service, upload: Upload, writer: BlobWriter) -> UploadPart:
    """Keep a part that the writer has. Raises `ApiError` 400 or 413; nothing is left of the part then."""
    try:
        check_size(service.settings.limits.part, writer.size, SMALLER_PARTS)
        if writer.size == 0:
            raise invalid("The part is empty.", param="data")
        open_upload(service, upload.id)  # it may have ended while the part came in
        held = writer.size + sum(one.bytes for one in service.store.all(UploadPart, {"upload_id": upload.id}))
        # Parts sent again after a lost answer are not used: there may be more bytes than the file has, within reason.
        if held > 2 * upload.bytes + service.settings.limits.part:
            raise invalid(
                f"The parts of upload {upload.id} have {held:,} bytes by now, and it was begun for {upload.bytes:,}.",
                param="data",
            )
        part = UploadPart(
            id=new_id("part", separator="_"),
            created_at=service.now(),
            upload_id=upload.id,
            blob=writer.finish(hold=True),
            bytes=writer.size,
        )
        service.store.add(part)
        return part
    finally:
        writer.abandon()


def complete_upload(service: Service, id: str, part_ids: Sequence[str], md5: str | None = None) -> Upload:
    """Make the file of these parts, in this order. Completing again with the same parts changes nothing.

    Raises `ApiError` 404, or 400 where the upload is over, the parts are not its own or not what was announced, or the
    file cannot be taken; the upload stays as it was.
    """
    upload = get_upload(service, id)
    if upload.status == "completed" and upload.part_ids == tuple(part_ids):
        return upload
    open_upload(service, id, _NOT_COMPLETED)
    parts = _parts(service, upload, part_ids)
    writer = service.blobs.writer()
    try:
        digest = hashlib.md5(usedforsecurity=False)
        for piece in _bytes_of(service, upload, parts):
            digest.update(piece)
            writer.write(piece)
        if md5 is not None and not hmac.compare_digest(md5.lower().encode(), digest.hexdigest().encode()):
            raise invalid(
                f"The parts do not add up to the file: their MD5 is {digest.hexdigest()}, and {md5[:64]!r} was given.",
                param="md5",
            )
        new = NewFile(upload.filename, upload.purpose, upload.file_expires_after, upload.flavour)
        create_file(service, new, writer, id=upload.file_id, in_parts=True)
    finally:
        writer.abandon()
    completed = service.store.move(Upload, id, "completed", only_from=["pending"], part_ids=tuple(part_ids))
    if completed is None:
        completed = get_upload(service, id)
        if completed.status != "completed":  # it was cancelled meanwhile
            _remove_file(service, completed)
            open_upload(service, id, _NOT_COMPLETED)
    _remove_parts(service, id)
    return completed


def cancel_upload(service: Service, id: str) -> Upload:
    """End an upload and remove its parts; cancelling again changes nothing. Raises `ApiError` 404 or 400."""
    upload = get_upload(service, id)
    if upload.status == "cancelled":
        return upload
    open_upload(service, id, "cannot be cancelled")
    cancelled = service.store.move(Upload, id, "cancelled", only_from=["pending"])
    if cancelled is None:
        return cancel_upload(service, id)  # it has ended just now: cancelled by another, or refused
    _remove_file(service, cancelled)
    _remove_parts(service, id)
    return cancelled


def end_expired_uploads(service: Service) -> None:
    """Give uploads whose hour is over their status, and remove parts of all that are over."""
    for upload in service.store.all(Upload, {"status": "pending", "expires_at": AtMost(service.now())}):
        # The process may have ended between making the file and saying so.
        made = service.store.get(File, upload.file_id) is not None
        service.store.move(Upload, upload.id, "completed" if made else "expired", only_from=["pending"])
    for id in {part.upload_id for part in service.store.all(UploadPart)}:
        if get_upload(service, id).status != "pending":
            _remove_parts(service, id)


def _parts(service: Service, upload: Upload, part_ids: Sequence[str]) -> list[UploadPart]:
    """The named parts, which must be of this upload, each once, and together as large as was announced."""
    if not part_ids:
        raise invalid("Invalid value for 'part_ids': expected the ids of the parts, in order.", param="part_ids")
    known = {part.id: part for part in service.store.all(UploadPart, {"upload_id": upload.id})}
    unknown = [id for id in part_ids if id not in known]
    if unknown:
        shown = ", ".join(id[:80] for id in unknown[:5])
        raise invalid(f"No such parts of upload {upload.id}: {shown}.", param="part_ids", code="invalid_value")
    if len(set(part_ids)) < len(part_ids):
        raise invalid("Invalid value for 'part_ids': a part is named twice.", param="part_ids", code="invalid_value")
    size = sum(known[id].bytes for id in part_ids)
    if size != upload.bytes:
        raise invalid(
            f"The parts have {size:,} bytes together, and the upload was begun for {upload.bytes:,}.", param="part_ids"
        )
    return [known[id] for id in part_ids]


def _bytes_of(service: Service, upload: Upload, parts: Sequence[UploadPart]) -> Iterator[bytes]:
    """The parts' bytes, one after the other. Raises `ApiError` where the upload ends meanwhile and they go with it."""
    for part in parts:
        try:
            file = service.blobs.path(part.blob).open("rb")
        except (KeyError, FileNotFoundError):
            open_upload(service, upload.id, _NOT_COMPLETED)
            raise
        with file:
            while piece := file.read(_PIECE):
                yield piece


def _remove_file(service: Service, upload: Upload) -> None:
    """The file that a completion had made already, and of which nobody was told."""
    file = service.store.get(File, upload.file_id)
    if file is not None and service.store.remove(File, file.id):
        drop_blob(service, file.blob)


def _remove_parts(service: Service, upload_id: str) -> None:
    for part in service.store.all(UploadPart, {"upload_id": upload_id}):
        service.store.remove(UploadPart, part.id)
        drop_blob(service, part.blob)
