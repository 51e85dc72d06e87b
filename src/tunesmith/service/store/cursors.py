"""Where a page begins: behind the record that a cursor names, also where it was removed since."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.service.store.interface import UnknownCursorError
from tunesmith.service.store.tables import Kind, gone

_KEPT_SECONDS = 86_400


def found(connection: sa.Connection, how: Kind, id: str, where: Sequence[sa.ColumnElement[bool]]) -> sa.Tuple:
    """The place of a record in the order of its list. Raises `UnknownCursorError` for one that `where` does not allow;
    of a removed one it is not known any more whether it did.
    """
    stands = sa.select(*how.order).where(how.table.c.id == id, *where)
    stood = sa.select(gone.c.place, gone.c.added).where(gone.c.kind == how.table.name, gone.c.id == id)
    place = connection.execute(stands).first() or connection.execute(stood).first()
    if place is None:
        raise UnknownCursorError(id)
    return sa.tuple_(*(sa.literal(part, sa.BigInteger) for part in place))


def remember(connection: sa.Connection, how: Kind, id: str, place: Sequence[Any]) -> None:
    """Keep where a record stood that is being removed."""
    now = int(time.time())
    connection.execute(sa.delete(gone).where(gone.c.removed_at < now - _KEPT_SECONDS))
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    row = {"kind": how.table.name, "id": id, "place": place[0], "added": place[1], "removed_at": now}
    # An id can be given again to another record (the same deployment), and that one be removed too.
    statement = insert(gone).values(**row).on_conflict_do_update(index_elements=["kind", "id"], set_=row)
    connection.execute(statement)
