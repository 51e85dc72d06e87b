"""OpenAI's `uploads`: a large file in parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from tunesmith.service.context import Service, flavour_of, service_of
from tunesmith.service.dialect.multipart import Form, missing_field, received_form, unknown_field
from tunesmith.service.dialect.openai.files import file_object
from tunesmith.service.filing import NewFile, check_size
from tunesmith.service.http import Body
from tunesmith.service.store.nouns import File, Upload
from tunesmith.service.uploading import (
    SMALLER_PARTS,
    add_part,
    cancel_upload,
    complete_upload,
    create_upload,
    file_of,
    open_upload,
)
from tunesmith.service.validation import refusal

router = APIRouter(tags=["Uploads"])

_FORM = {
    "type": "object",
    "required": ["data"],
    "additionalProperties": False,
    "properties": {"data": {"type": "string", "format": "binary"}},
}


class ExpiresAfter(Body):
    """When the file of an upload expires."""

    anchor: Literal["created_at"]
    seconds: int


class UploadRequest(Body):
    """What is going to be uploaded."""

    filename: str
    purpose: str
    bytes: int
    mime_type: str = Field(min_length=1, max_length=200)
    expires_after: ExpiresAfter | None = None


class CompleteRequest(Body):
    """The parts in their order, and a checksum of the whole."""

    part_ids: list[str] = Field(max_length=10_000)
    md5: str | None = Field(None, max_length=100)


@router.post("/uploads")
def begin_upload(
    body: UploadRequest, request: Request, service: Annotated[Service, Depends(service_of)]
) -> JSONResponse:
    """Begin; parts are taken for an hour."""
    lasts = body.expires_after.seconds if body.expires_after is not None else None
    new = NewFile(body.filename, body.purpose, lasts, flavour_of(request))
    return JSONResponse(upload_object(create_upload(service, new, body.bytes, body.mime_type)))


@router.post(
    "/uploads/{upload_id}/parts",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def upload_part(
    upload_id: str, request: Request, service: Annotated[Service, Depends(service_of)]
) -> JSONResponse:
    """Add a part; the order is decided when the upload is completed."""
    upload = await run_in_threadpool(open_upload, service, upload_id)

    def check(_: Form, size: int) -> None:
        check_size(service.settings.limits.part, size, SMALLER_PARTS)

    async with received_form(request, service.blobs, file="data", check=check) as form:
        problems = [unknown_field(name) for name in form.fields]
        if form.writer is None:
            problems.append(missing_field("data"))
        if problems or form.writer is None:
            raise refusal(problems)
        part = await run_in_threadpool(add_part, service, upload, form.writer)
    return JSONResponse(
        {"id": part.id, "object": "upload.part", "created_at": part.created_at, "upload_id": part.upload_id}
    )


@router.post("/uploads/{upload_id}/complete")
def finish_upload(
    upload_id: str, body: CompleteRequest, service: Annotated[Service, Depends(service_of)]
) -> JSONResponse:
    """Make the file of the parts."""
    upload = complete_upload(service, upload_id, body.part_ids, body.md5)
    return JSONResponse(upload_object(upload, file_of(service, upload)))


@router.post("/uploads/{upload_id}/cancel")
def give_up_upload(upload_id: str, service: Annotated[Service, Depends(service_of)]) -> JSONResponse:
    """End an upload that is not completed."""
    return JSONResponse(upload_object(cancel_upload(service, upload_id)))


def upload_object(upload: Upload, file: File | None = None) -> dict[str, Any]:
    """OpenAI's upload object."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.created_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "expires_at": upload.expires_at,
        "file": file_object(file) if file is not None else None,
    }
