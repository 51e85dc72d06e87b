"""OpenAI's `files`: upload, list, retrieve, content, delete."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from tunesmith.service.context import Service, flavour_of, service_of
from tunesmith.service.dialect.multipart import Form, missing_field, received_form, unknown_field
from tunesmith.service.filing import (
    LONGEST_LIFE,
    PURPOSES,
    SHORTEST_LIFE,
    NewFile,
    check_new,
    check_size,
    create_file,
    delete_file,
    file_path,
    get_file,
    largest,
    list_files,
)
from tunesmith.service.http import list_body, paging
from tunesmith.service.ids import Flavour
from tunesmith.service.repeats import RETRY_SECONDS, is_retry
from tunesmith.service.store.interface import Page
from tunesmith.service.store.nouns import File
from tunesmith.service.validation import Problem, refusal

router = APIRouter(tags=["Files"])

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = frozenset({"file", "purpose", _ANCHOR, _SECONDS})
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        _ANCHOR: {"type": "string", "enum": ["created_at"]},
        _SECONDS: {"type": "integer", "minimum": SHORTEST_LIFE, "maximum": LONGEST_LIFE},
    },
}


UPLOAD_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
"""What the OpenAPI document says of an upload."""


@router.post("/files", openapi_extra=UPLOAD_BODY)
async def upload_file(request: Request, service: Annotated[Service, Depends(service_of)]) -> JSONResponse:
    """Upload a file: `purpose`, `file`, and `expires_after[…]` where it shall not stay."""
    return JSONResponse(file_object(await received_file(request, service, flavour_of(request))))


@router.get("/files")
def files(
    service: Annotated[Service, Depends(service_of)],
    page: Annotated[Page, Depends(paging(default=10_000, largest=10_000))],
    purpose: Annotated[str | None, Query(max_length=100)] = None,
) -> JSONResponse:
    """The files that are there, newest first."""
    found = list_files(service, page, purpose)
    return JSONResponse(list_body([file_object(one, report=False) for one in found.items], found.has_more))


@router.get("/files/{id}")
def retrieve_file(id: str, service: Annotated[Service, Depends(service_of)]) -> JSONResponse:
    """One file, with what was found in it."""
    return JSONResponse(file_object(get_file(service, id)))


@router.delete("/files/{id}")
def remove_file(id: str, service: Annotated[Service, Depends(service_of)]) -> JSONResponse:
    """Delete a file."""
    return JSONResponse({"id": delete_file(service, id).id, "object": "file", "deleted": True})


@router.get("/files/{id}/content", response_class=FileResponse)
def file_content(id: str, service: Annotated[Service, Depends(service_of)]) -> FileResponse:
    """The bytes of a file, as they were uploaded."""
    return content_of(service, get_file(service, id))


def file_object(file: File, *, report: bool = True) -> dict[str, Any]:
    """OpenAI's file object; `report` (not in lists) is what the checks found, where there were any."""
    shown: dict[str, Any] = {
        "object": "file",
        "id": file.id,
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": file.status_details,
    }
    if report and file.report is not None:
        shown["report"] = dict(file.report)
    return shown


def content_of(service: Service, file: File) -> FileResponse:
    """A file's bytes as an answer; whatever they are, a browser saves them and runs nothing."""
    return FileResponse(
        file_path(service, file),
        media_type="application/octet-stream",
        filename=file.filename,
        headers={
            "x-content-type-options": "nosniff",
            "last-modified": formatdate(file.created_at, usegmt=True),
            "etag": f'"{file.blob}"',
        },
    )


async def received_file(request: Request, service: Service, flavour: Flavour) -> File:
    """Read an upload and take the file in; the same for both dialects. Raises `ApiError` with all that is wrong."""

    def check(form: Form, size: int) -> None:
        # The purpose may come behind the file, so the smaller limit of some is looked at again at the end.
        check_size(largest(service, form.fields.get("purpose")), size)

    async with received_form(request, service.blobs, file="file", check=check) as form:
        new = new_file(form, flavour)
        assert form.writer is not None
        since = service.now() - RETRY_SECONDS if is_retry(request.headers) else None
        return await run_in_threadpool(create_file, service, new, form.writer, repeats_since=since)


def new_file(form: Form, flavour: Flavour) -> NewFile:
    """The fields of an upload. Raises `ApiError` 400 with every one that is missing, unknown or wrong."""
    unknown = sorted(form.fields.keys() - _FIELDS)
    problems = [unknown_field(name) for name in unknown]
    if form.filename is None:
        problems.append(missing_field("file"))
    if "purpose" not in form.fields:
        problems.append(missing_field("purpose"))
    lasts = _lasts(form.fields, problems)
    if problems:
        raise refusal(problems)
    new = NewFile(form.filename or "", form.fields["purpose"], lasts, flavour)
    check_new(new)
    return new


def _lasts(fields: Mapping[str, str], problems: list[Problem]) -> int | None:
    """Seconds until the file expires; what is wrong with them is added to the problems."""
    anchor, seconds = fields.get(_ANCHOR), fields.get(_SECONDS)
    if anchor is None and seconds is None:
        return None
    problems += [missing_field(name) for name in (_ANCHOR, _SECONDS) if name not in fields]
    if anchor not in (None, "created_at"):
        told = f"Invalid value for '{_ANCHOR}': expected 'created_at', but got {anchor[:40]!r} instead."
        problems.append(Problem(told, _ANCHOR, "invalid_value"))
    if seconds is None:
        return None
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 12):
        told = f"Invalid type for '{_SECONDS}': expected an integer, but got {seconds[:40]!r} instead."
        problems.append(Problem(told, _SECONDS, "invalid_type"))
        return None
    return int(seconds)
