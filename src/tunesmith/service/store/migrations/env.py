"""What Alembic runs: our tables on the connection it was given, with a version table that no other program shares."""

from __future__ import annotations

from alembic import context

from tunesmith.service.store.migrations import VERSION_TABLE
from tunesmith.service.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
