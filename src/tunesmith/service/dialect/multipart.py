"""Forms with a file in them, read as they come: the file goes to the disk in pieces, and is never whole in memory."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import python_multipart
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool

from tunesmith.service.errors import ApiError, invalid
from tunesmith.service.store.interface import Blobs, BlobWriter
from tunesmith.service.validation import Problem, refusal

# It warns of each form that is wrong; whoever sent it is told, and the log belongs to the server's own troubles.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

_WRITE_AT_ONCE = 1 << 20
_LONGEST_FIELD = 10_000
_MOST_PARTS = 50
_HEADERS = 16


@dataclass(slots=True)
class Form:
    """What a form held: its fields, and the bytes of its file, which nobody has finished yet."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    writer: BlobWriter | None = None


Check = Callable[[Form, int], None]
"""Is told the form so far and the bytes of its file whenever more has come; raises where that is too much."""


@asynccontextmanager
async def received_form(request: Request, blobs: Blobs, *, file: str, check: Check) -> AsyncIterator[Form]:
    """The form of a request, whose field `file` is a file; when the block ends, an unfinished file is removed.

    Raises `ApiError` 400 where it is no form, is cut off, or names a field twice; and whatever `check` raises.
    """
    reader = _Reader(file, _boundary(request), blobs)
    try:
        async for chunk in request.stream():
            reader.read(chunk)
            if reader.opened and reader.form.writer is None:
                reader.form.writer = await run_in_threadpool(blobs.writer)
            check(reader.form, reader.size)
            if len(reader.waiting) >= _WRITE_AT_ONCE:
                await reader.flush()
        reader.end()
        await reader.flush()
        yield reader.form
    finally:
        if reader.form.writer is not None:
            await run_in_threadpool(reader.form.writer.abandon)


def unknown_field(name: str) -> Problem:
    """A field that the endpoint does not have."""
    return Problem(f"Unknown parameter: '{name[:80]}'.", name[:80], "unknown_parameter")


def missing_field(name: str) -> Problem:
    """A field that was not sent."""
    return Problem(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")


class _Reader:
    """Takes a form apart as its bytes come in."""

    def __init__(self, file: str, boundary: bytes, blobs: Blobs) -> None:
        self.form = Form()
        self.waiting = bytearray()
        self.opened = False
        self.size = 0
        self._file = file
        self._blobs = blobs
        self._name = ""
        self._in_file = False
        self._ended = False
        self._parts = 0
        self._value = bytearray()
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        try:
            self._parser = python_multipart.MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._data,
                    "on_part_end": self._end_part,
                    "on_end": self._end_form,
                },
                max_header_count=_HEADERS,
            )
        except FormParserError as error:
            raise _malformed("its boundary is too long") from error

    def read(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed("it does not keep to its boundary") from error

    def end(self) -> None:
        if not self._ended:
            raise _malformed("it ends before its last boundary")

    async def flush(self) -> None:
        if self.waiting and self.form.writer is not None:
            await run_in_threadpool(self.form.writer.write, bytes(self.waiting))
            self.waiting.clear()

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise _malformed(f"it has more than {_MOST_PARTS} parts")
        self._disposition, self._value = b"", bytearray()

    def _end_header(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed("a part has no name")
        self._name = options[b"name"].decode("utf-8", "replace")
        filename = options.get(b"filename")
        if self._name in self.form.fields or (self._name == self._file and self.opened):
            raise invalid(
                f"Duplicate parameter: '{self._name[:80]}'.", param=self._name[:80], code="duplicate_parameter"
            )
        self._in_file = self._name == self._file
        if self._in_file and filename is None:
            raise invalid(
                f"Invalid type for '{self._name}': expected a file, but got a string instead.",
                param=self._name,
                code="invalid_type",
            )
        if not self._in_file and filename is not None:
            raise refusal([unknown_field(self._name)])
        if self._in_file and filename is not None:
            self.opened = True
            self.form.filename = filename.decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.size += end - start
            self.waiting += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _LONGEST_FIELD:
            raise invalid(f"Invalid value for '{self._name[:80]}': it is too long.", param=self._name[:80])

    def _end_part(self) -> None:
        if not self._in_file:
            self.form.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end_form(self) -> None:
        self._ended = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        shown = kind.decode("latin-1")[:80]
        raise ApiError(
            400,
            f"Unsupported content type: {shown!r}. This endpoint takes 'multipart/form-data' with the file as a part.",
            code="unsupported_content_type",
        )
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _malformed("its boundary is missing from the content type")
    return boundary


def _malformed(why: str) -> ApiError:
    return ApiError(400, f"Could not parse the multipart form: {why}.", code="invalid_multipart_form_data")
