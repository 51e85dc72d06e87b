"""The tables, made from the records of `nouns`: one for each kind, one column for each field.

Mappings and tuples are JSON columns. `added` counts the rows of a table in the order they were added: it breaks ties
between equal times, and its numbers are never given twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import sqlalchemy as sa

from tunesmith.service.store import nouns

metadata = sa.MetaData()


class Words(sa.types.TypeDecorator[str]):
    """Text. What no database takes (half a surrogate pair; on PostgreSQL also NUL) is kept as U+FFFD."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None or (value.isascii() and "\0" not in value):
            return value
        if dialect.name != "sqlite":
            value = value.replace("\0", "\ufffd")
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


ADDED = "added"

_NAMES: Mapping[type[Any], str] = {
    nouns.File: "files",
    nouns.Upload: "uploads",
    nouns.UploadPart: "upload_parts",
    nouns.Job: "jobs",
    nouns.Event: "events",
    nouns.Checkpoint: "checkpoints",
    nouns.Permission: "permissions",
    nouns.Model: "models",
    nouns.Deployment: "deployments",
    nouns.StoredCompletion: "stored_completions",
    nouns.StoredResponse: "stored_responses",
    nouns.Batch: "batches",
    nouns.Eval: "evals",
    nouns.EvalRun: "eval_runs",
    nouns.OutputItem: "output_items",
    nouns.Key: "keys",
    nouns.AuditEntry: "audit_entries",
    nouns.Repeat: "repeats",
    nouns.Lease: "leases",
}

_ORDER: Mapping[type[Any], str] = {nouns.Event: "seq", nouns.OutputItem: "place"}
"""What lists are sorted by instead of their time; these are listed for one job or run only."""

_UNIQUE: Mapping[type[Any], tuple[tuple[str, ...], ...]] = {
    nouns.Event: (("job_id", "seq"),),
    nouns.Key: (("digest",),),
}

_LOOKED_UP_BY: Mapping[type[Any], tuple[str, ...]] = {
    nouns.File: ("purpose", "blob", "expires_at"),
    nouns.UploadPart: ("upload_id", "blob"),
    nouns.Upload: ("status",),
    nouns.Job: ("status", "evidence", "training_file", "fine_tuned_model"),
    nouns.Checkpoint: ("job_id", "name"),
    nouns.Permission: ("checkpoint",),
    nouns.Model: ("job_id",),
    nouns.StoredCompletion: ("model",),
    nouns.Batch: ("status",),
    nouns.EvalRun: ("eval_id", "status"),
    nouns.OutputItem: ("run_id",),
}
"""Fields that lists are narrowed by; each has an index that also holds the order."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of record is kept. Lists are sorted by the two columns `order`: time or place, then `added`."""

    record: type[Any]
    table: sa.Table
    order: tuple[sa.Column[Any], sa.Column[Any]]
    columns: tuple[sa.Column[Any], ...]
    tuples: frozenset[str]

    def row(self, record: Any) -> dict[str, Any]:
        """The values of a record, by column."""
        return {column.name: self.value(column.name, getattr(record, column.name)) for column in self.columns}

    def value(self, name: str, value: Any) -> Any:
        """One field as its column holds it."""
        return list(value) if name in self.tuples and value is not None else value

    def read(self, row: Any) -> Any:
        """The record of a row selected by `columns`."""
        if not self.tuples:
            return self.record(*row)
        pairs = zip(self.columns, row, strict=True)
        return self.record(*[tuple(v) if c.name in self.tuples and v is not None else v for c, v in pairs])


gone = sa.Table(
    "gone",
    metadata,
    sa.Column("kind", Words, primary_key=True),
    sa.Column("id", Words, primary_key=True),
    sa.Column("place", sa.BigInteger, nullable=False),
    sa.Column(ADDED, sa.BigInteger, nullable=False),
    sa.Column("removed_at", sa.BigInteger, nullable=False, index=True),
)
"""Where removed records stood in their lists, for a day: who deletes while paging goes on behind the deleted one."""


def kind_of(record: type[Any]) -> Kind:
    """How records of a class are kept. Raises `TypeError` for a class that is no record of `nouns`."""
    try:
        return KINDS[record]
    except KeyError:
        raise TypeError(f"{record!r} is no record of tunesmith.service.store.nouns") from None


def _kind(record: type[Any], name: str) -> Kind:
    types = get_type_hints(record)
    columns = tuple(_column(one.name, types[one.name]) for one in fields(record))
    order = _ORDER.get(record, "created_at")
    looked_up = _LOOKED_UP_BY.get(record, ())
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    table = sa.Table(
        name,
        metadata,
        sa.Column(ADDED, number, primary_key=True, autoincrement=True),
        *columns,
        sa.UniqueConstraint("id", name=f"{name}_id"),
        *(sa.UniqueConstraint(*names, name=f"{name}_{'_'.join(names)}") for names in _UNIQUE.get(record, ())),
        *([sa.Index(f"{name}_in_order", order, ADDED)] if record not in _ORDER else []),
        *(sa.Index(f"{name}_by_{one}", one, order, ADDED) for one in looked_up),
        sqlite_autoincrement=True,
    )
    tuples = frozenset(one.name for one in fields(record) if get_origin(_without_none(types[one.name])) is tuple)
    return Kind(record, table, (table.c[order], table.c[ADDED]), columns, tuples)


def _column(name: str, type_: Any) -> sa.Column[Any]:
    kept = _without_none(type_)
    return sa.Column(name, _column_type(kept), nullable=kept is not type_)


def _column_type(kept: Any) -> sa.types.TypeEngine[Any]:
    plain: Mapping[Any, Callable[[], sa.types.TypeEngine[Any]]] = {
        str: Words,
        int: sa.BigInteger,
        float: lambda: sa.Float(53),
        bool: sa.Boolean,
    }
    if kept in plain:
        return plain[kept]()
    origin = get_origin(kept)
    if origin is Literal:
        return Words()
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return sa.JSON(none_as_null=True)
    raise TypeError(f"no column holds {kept!r}")


def _without_none(type_: Any) -> Any:
    if get_origin(type_) not in (Union, UnionType):
        return type_
    rest = [one for one in get_args(type_) if one is not NoneType]
    if len(rest) != 1:
        raise TypeError(f"no column holds {type_!r}")
    return rest[0]


KINDS: Mapping[type[Any], Kind] = MappingProxyType({record: _kind(record, name) for record, name in _NAMES.items()})
