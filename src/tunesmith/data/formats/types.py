"""What a format is: how to recognise its rows, how to read one, how to write one back.

A format is one file with one object of this protocol. Ours are listed in `registry.py`; a package of yours announces
its own by an entry point of the group `tunesmith.formats`:

    [project.entry-points."tunesmith.formats"]
    support_mail = "mypackage.support_mail:FORMAT"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from tunesmith.data.findings import FindingLog
from tunesmith.data.types import Content, Example, Kind, Row


@dataclass(frozen=True, slots=True)
class Recognition:
    """How sure a format is that rows are its own (0 to 1), and why, as the end of "recognised by …".

    `columns` are those it reads here beside the ones it always reads, such as variables that users name.
    """

    confidence: float
    reason: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """The first rows of a source, and the names of its columns."""

    rows: Sequence[Row]
    columns: tuple[str, ...]

    def has(self, *names: str) -> bool:
        """Whether there are columns of all these names."""
        return all(name in self.columns for name in names)

    def any(self, *names: str) -> str | None:
        """The first of these names that is a column."""
        return next((name for name in names if name in self.columns), None)

    def cells(self, name: str) -> Iterator[Any]:
        """The cells of a column that are not null."""
        return (value for row in self.rows if (value := row.values.get(name)) is not None)

    def share(self, name: str, kind: type | tuple[type, ...]) -> float:
        """The share of a column's cells that are of this type; 0 where it has none."""
        cells = list(self.cells(name))
        return sum(isinstance(value, kind) for value in cells) / len(cells) if cells else 0.0


class Format(Protocol):
    """A way in which rows are written.

    Attributes
    ----------
    name: what `data.format` calls it.
    title: what people call it.
    columns: the fields of a row that it reads; all others are kept beside the example.
    """

    name: str
    title: str
    columns: tuple[str, ...]

    def recognise(self, sample: Sample) -> Recognition | None:
        """How sure it is that these are its rows; None where they are not."""

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """What a row says, or None with every reason noted in `log`."""


@runtime_checkable
class Writer(Format, Protocol):
    """A format that can be written too.

    Attributes
    ----------
    kinds: the kinds of examples it can write.
    keeps_others: whether its rows may have other fields.
    """

    kinds: frozenset[Kind]
    keeps_others: bool

    def losses(self, example: Example) -> Sequence[str]:
        """What of the example its rows cannot say, in words; nothing where a row says it all."""

    def write(self, example: Example) -> dict[str, Any]:
        """The row for an example of one of its `kinds`."""
