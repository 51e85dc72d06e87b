"""Formats that were tried to choose among them: what each costs and keeps, which are worth it, why others fell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.verdict import wording
from tunesmith.verdict.report_exports import ExportCells, ExportLine, cells, charts


@dataclass(frozen=True, slots=True)
class TriedExport:
    """One of them. line: its figures, of validation rows; None where it could not be made. note: why it was chosen or
    not. front: no other is as good in quality, size and speed and better in one."""

    name: str
    note: str
    line: ExportLine | None = None
    front: bool = False
    allowed: bool = False
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class TriedData:
    """All of them. best: `speed` or `size`, what was chosen by. rows: validation rows that each answered.

    confirmed: what the test rows say of the chosen one; None where they do not confirm it, or nothing was chosen.
    """

    exports: tuple[TriedExport, ...]
    best: str
    max_loss: float
    rows: int
    confirmed: str | None = None


@dataclass(frozen=True, slots=True)
class TriedCells:
    """A line of the table, in words."""

    cells: ExportCells
    note: str
    tone: str
    front: bool


@dataclass(frozen=True, slots=True)
class Tried:
    """The section: sentences, the table, pictures, and what could not be made with the reason."""

    sentences: tuple[str, ...]
    metric: str
    lines: tuple[TriedCells, ...]
    charts: tuple[Markup, ...]
    not_made: tuple[tuple[str, str], ...]


def tried(data: TriedData | None, *, confidence: float) -> Tried | None:
    """What the report shows of formats that were tried; None where none were."""
    if data is None:
        return None
    made = [(one, one.line) for one in data.exports if one.line is not None]
    made.sort(key=lambda pair: (-pair[1].total, pair[0].name))
    metric = next((line.metric for _, line in made if line.metric is not None), None)
    return Tried(
        _sentences(data, len(made)),
        wording.metric_name(metric) if metric is not None else "quality",
        tuple(
            TriedCells(cells(number, line, confidence), one.note, _tone(one), one.front)
            for number, (one, line) in enumerate(made, 1)
        ),
        tuple(charts([line for _, line in made], _tuned([line for _, line in made]))),
        tuple((one.name, one.note) for one in data.exports if one.line is None),
    )


def _sentences(data: TriedData, made: int) -> tuple[str, ...]:
    chosen = next((one for one in data.exports if one.chosen), None)
    best = "smallest" if data.best == "size" else "fastest"
    said = f"{len(data.exports)} formats were tried, {made} could be made. "
    loss = f"a loss of {wording.bare_points(data.max_loss)} points"
    if chosen is None:
        return (f"{said}None of them is within the limits: {loss} was allowed.",)
    said += f"{chosen.name} is the {best} of those within the limits ({loss} was allowed)."
    if data.confirmed is None:
        return said, "The test rows do not confirm it."
    return said, f"On the test rows, which only confirm it: {data.confirmed}."


def _tone(one: TriedExport) -> str:
    return "right" if one.chosen else "quiet" if one.allowed else "wrong"


def _tuned(lines: Sequence[ExportLine]) -> float | None:
    """The tuned model's metric on the same rows."""
    known = (one.value - one.difference for one in lines if one.value is not None and one.difference is not None)
    return next(known, None)
