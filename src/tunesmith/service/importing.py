"""Taking in a file from an http(s) address, where the settings allow it."""

from __future__ import annotations

from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.fetching import Rules, checked_url, fetched
from tunesmith.service.filing import NewFile, check_new, create_file, largest
from tunesmith.service.store.nouns import File


def import_file(service: Service, new: NewFile, url: str) -> File:
    """Read a file from an address and keep it, checked like an upload. It is there when this returns.

    Raises `ApiError`: 403 where importing is switched off, 400 `fileImportFailed` where nothing could be read, and what
    `create_file` raises.
    """
    checked_url(url)
    check_new(new)
    settings = service.settings
    if not settings.fetch_urls:
        raise ApiError(
            403,
            "Importing from addresses is switched off on this server. Upload the file with POST /openai/files, or let "
            "whoever runs the server switch on 'fetch_urls' in its configuration.",
            param="content_url",
            code="forbidden",
        )
    writer = service.blobs.writer()
    try:
        with fetched(url, Rules(largest(service, new.purpose), settings.fetch_private)) as pieces:
            for piece in pieces:
                writer.write(piece)
        return create_file(service, new, writer)
    finally:
        writer.abandon()
