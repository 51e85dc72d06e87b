"""What is kept: records in a database, bytes in files. `open_store` opens both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.service.settings import ServeSettings, make_home

if TYPE_CHECKING:
    from tunesmith.service.store.blobs import FolderBlobs
    from tunesmith.service.store.sql import SqlStore


def open_store(settings: ServeSettings) -> tuple[SqlStore, FolderBlobs]:
    """The store and the blobs of a server or worker, made or brought up to date where needed.

    Any number of processes may have them open. Raises `RecipeError` for a URL of no known database, `ResourceError`
    where the database or the home folder cannot be used.
    """
    from tunesmith.errors import ResourceError
    from tunesmith.service.store.blobs import FolderBlobs
    from tunesmith.service.store.engine import Database
    from tunesmith.service.store.migrations import migrate
    from tunesmith.service.store.sql import SqlStore

    try:
        make_home(settings.home)
        database = Database(settings.database_url)
        try:
            migrate(database)
            return SqlStore(database), FolderBlobs(settings.home, settings.limits)
        except BaseException:
            database.close()
            raise
    except OSError as error:
        raise ResourceError(
            f"the home folder cannot be used: {(error.strerror or str(error)).lower()}",
            where=str(error.filename or settings.home),
            fix="choose a folder that you may write to with --home",
        ) from error
