"""Write a migration for what has changed in `nouns`: `python -m tunesmith.service.store.migrations NAME`.

It compares the tables of the records with a new database that all migrations have made, and writes the difference as
the next file in `versions/`. Read it before it is committed: a new column without a default needs one where a table can
have rows, and a renamed field looks like one that went and one that came.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext

from tunesmith.service.store.engine import Database
from tunesmith.service.store.migrations import HEAD, VERSION_TABLE, migrate
from tunesmith.service.store.tables import Words, metadata

_FILE = '''"""{title}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "{number}"
down_revision = {before}


def upgrade() -> None:
    {body}
'''


def difference(database: Database) -> str | None:
    """Python that brings the database to the tables of the records; None where it has them already."""
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        found = produce_migrations(context, metadata)
        if found.upgrade_ops is None or found.upgrade_ops.is_empty():
            return None
        code: str = render_python_code(found.upgrade_ops, render_item=_render, migration_context=context)
        return code


def _render(kind: str, item: Any, _: Any) -> str | bool:
    """Types by what the database makes of them; False leaves the others to Alembic."""
    plain = {Words: "sa.Text()", sa.JSON: "sa.JSON()"}
    return plain.get(type(item), False) if kind == "type" else False


def _tidy(body: str) -> str:
    """Without Alembic's own comments."""
    return "\n".join(
        line for line in body.splitlines() if line.strip() and not line.strip().startswith("# ###")
    ).strip()


def main(name: str) -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/empty.sqlite")
        migrate(database)
        body = difference(database)
        database.close()
    if body is None:
        raise SystemExit("nothing has changed")
    number = f"{int(HEAD or 0) + 1:04}"
    before = f'"{HEAD}"' if HEAD else None
    path = Path(__file__).parent / "versions" / f"{number}_{name}.py"
    title = name.replace("_", " ").capitalize()
    path.write_text(_FILE.format(title=title, number=number, before=before, body=_tidy(body)))
    print(path)


if __name__ == "__main__":
    main(sys.argv[1])
