"""Files as Azure's data plane has them: as OpenAI's, and imported from an address too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field

from tunesmith.service import filing
from tunesmith.service.context import Service, service_of
from tunesmith.service.dialect.azure.objects import list_object
from tunesmith.service.dialect.openai.files import UPLOAD_BODY, content_of, file_object, received_file
from tunesmith.service.errors import ApiError
from tunesmith.service.filing import NewFile
from tunesmith.service.http import Body, paging
from tunesmith.service.ids import Flavour
from tunesmith.service.importing import import_file
from tunesmith.service.store.interface import Page

router = APIRouter()
beyond = APIRouter()
"""What Azure has under `/openai/v1` and OpenAI has not."""

_Service = Annotated[Service, Depends(service_of)]
_Page = Annotated[Page, Depends(paging(default=10_000, largest=10_000))]


class ImportRequest(Body):
    """A file at an address: often one of a blob store, signed for a while."""

    purpose: Annotated[str, Field(min_length=1, max_length=64)]
    filename: Annotated[str, Field(min_length=1, max_length=filing.LONGEST_NAME)]
    content_url: Annotated[str, Field(min_length=1, max_length=8_000)]


@router.post("/files", status_code=201, openapi_extra=UPLOAD_BODY)
async def upload_file(request: Request, service: _Service) -> JSONResponse:
    """Upload a file. A byte-order mark is taken, and not asked for."""
    with _in_azures_code():
        file = await received_file(request, service, "azure")
    return JSONResponse(file_object(file), status_code=201)


@router.post("/files/import", status_code=201)
def import_azure_file(body: ImportRequest, service: _Service) -> dict[str, Any]:
    """Take in a file from an http(s) address, where the server is set up for it."""
    return _imported(service, body, "azure")


@beyond.post("/files/import", status_code=201)
def import_openai_file(body: ImportRequest, service: _Service) -> dict[str, Any]:
    """The same under `/openai/v1`."""
    return _imported(service, body, "openai")


@router.get("/files")
def list_files(
    service: _Service, page: _Page, purpose: Annotated[str | None, Query(max_length=64)] = None
) -> dict[str, Any]:
    """The files that are there, newest first."""
    found = filing.list_files(service, page, purpose)
    return list_object([file_object(one, report=False) for one in found.items], found.has_more)


@router.get("/files/{file}")
def retrieve_file(file: str, service: _Service) -> dict[str, Any]:
    """One file, with what was found in it."""
    return file_object(filing.get_file(service, file))


@router.delete("/files/{file}")
def delete_file(file: str, service: _Service) -> dict[str, Any]:
    """Delete a file."""
    return {"id": filing.delete_file(service, file).id, "object": "file", "deleted": True}


@router.get("/files/{file}/content", response_class=FileResponse)
def file_content(file: str, service: _Service) -> FileResponse:
    """The bytes of a file, as they came."""
    return content_of(service, filing.get_file(service, file))


def _imported(service: Service, body: ImportRequest, flavour: Flavour) -> dict[str, Any]:
    with _in_azures_code():
        return file_object(
            import_file(service, NewFile(body.filename, body.purpose, flavour=flavour), body.content_url)
        )


@contextmanager
def _in_azures_code() -> Iterator[None]:
    """A file whose rows cannot be read is refused without a code at OpenAI, and with this one at Azure."""
    try:
        yield
    except ApiError as error:
        if error.param == "file" and error.code is None:
            raise replace(error, code="jsonlValidationFailed") from error
        raise
