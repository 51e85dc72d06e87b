"""Data sets as Olive names them (id, subset, split, files) as the recipe's sources.

A slice such as `train[:4096]`, several files, or a text column of another name are written out as JSON lines beside the
run; everything else is named as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.pipeline.olive.draft import Draft
from tunesmith.pipeline.olive.project import Project
from tunesmith.runs import write_text

_SPLIT = re.compile(r"(?P<name>[\w.-]*)(?:\[(?P<first>-?\d*%?):(?P<last>-?\d*%?)\])?")
_SMALL = 1 << 16
_LOADERS = frozenset({"json", "csv", "parquet", "arrow", "text"})
"""Names that `datasets` has for kinds of files; the files themselves say what they are."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows as they were asked for.

    name, subset: of a data set. files: paths, in place of it. split: `train`, `train[:100]`. column: the text's, where
    it is another than `text`.
    """

    name: str | None = None
    subset: str | None = None
    split: str | None = None
    files: tuple[str, ...] = ()
    column: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from: addresses of which each holds some, and what is taken of them."""

    places: tuple[str, ...]
    split: str | None
    first: str = ""
    last: str = ""
    column: str | None = None

    @property
    def plain(self) -> bool:
        """Whether a recipe can name it without writing anything out."""
        sliced = bool(self.first or self.last)
        return len(self.places) == 1 and self.column is None and (not sliced or _is_set(self.places[0]))


def find(wanted: Wanted, project: Project, draft: Draft, said: str, split_said: str) -> Source | None:
    """Where the rows are; None with the problem noted. Nothing is read yet."""
    match = _SPLIT.fullmatch(wanted.split or "")
    if match is None:
        draft.wrong(split_said, f"{wanted.split!r} is no split", expected="train, train[:4096] or train[10%:20%]")
        return None
    if wanted.files:
        places = tuple(project.rows(file, None, said) for file in wanted.files)
    elif wanted.name is not None and wanted.name in _LOADERS:
        draft.wrong(said, f"{wanted.name} is a kind of file", fix="name the files with --data_files")
        return None
    elif wanted.name is not None:
        places = (project.rows(wanted.name, wanted.subset, said),)
    else:
        return None
    name, sliced = match["name"] or None, (match["first"] or "", match["last"] or "")
    if not _is_set(places[0]):
        if name not in (None, "train") and not wanted.files:
            own = f"{wanted.name}:{name}"
            if own in project.datasets:
                return Source((project.datasets[own],), None, *sliced, column=wanted.column)
            draft.wrong(
                split_said, f"the data set is one file, {Path(places[0]).name}, which has no part {name!r}",
                expected="train, with rows such as train[:1000]", fix=f"or give {own} a file in the alias file",
            )  # fmt: skip
            return None
        return Source(places, None, *sliced, column=wanted.column)
    subset = f"{wanted.subset}/" if wanted.subset else ""
    return Source(places, f"{subset}{name or 'train'}", *sliced, column=wanted.column)


def few_rows(source: Source, few: int) -> int | None:
    """How many rows there are, where they are fewer than `few`; only small files are read for that."""
    files = [Path(place) for place in source.places]
    if not all(file.is_file() and file.stat().st_size < _SMALL for file in files):
        return None
    count = len(_rows(source))
    return count if count < few else None


def address(source: Source, folder: Path, part: str, writes: bool = True) -> str:
    """What the recipe names: the source itself, or a file of its rows written into `folder` (unless `writes` is off).

    Raises `DataError` where there are none of the rows asked for.
    """
    if source.plain:
        cut = f"[{source.first}:{source.last}]" if source.first or source.last else ""
        return f"{source.places[0]}#{source.split}{cut}" if source.split is not None else source.places[0]
    path = folder / f"{part}.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(source))
    if writes and (not path.is_file() or path.read_text(encoding="utf-8") != text):
        write_text(path, text)
    return str(path.resolve())


def _rows(source: Source) -> list[Mapping[str, Any]]:
    from tunesmith.data.reading import read_rows

    rows: list[Mapping[str, Any]] = []
    for place in source.places:
        read = read_rows(f"{place}#{source.split}" if source.split is not None else place)
        broken = [finding for finding in read.findings if finding.severity == "error"]
        if broken:
            raise DataError(
                f"{broken[0].message}{f' (and {len(broken) - 1} more)' if len(broken) > 1 else ''}",
                where=place, fix="mend the file; `tunesmith check FILE` names every row",
            )  # fmt: skip
        rows += [row.values for row in read.rows]
    first, last = _position(source.first, len(rows), 0), _position(source.last, len(rows), len(rows))
    taken = rows[first:last]
    if not taken:
        raise DataError(
            f"rows {source.first or 0} to {source.last or 'the end'} were asked for, of {len(rows):,}",
            where=", ".join(source.places), expected="at least one row", fix="correct the split",
        )  # fmt: skip
    if source.column is None:
        return taken
    missing = sum(source.column not in row for row in taken)
    if missing == len(taken):
        known = ", ".join(sorted({name for row in taken for name in row}))
        raise DataError(
            f"there is no column {source.column!r}", where=", ".join(source.places), expected=f"one of: {known}"
        )
    return [{**row, "text": row.get(source.column, "")} for row in taken]


def _position(text: str, rows: int, missing: int) -> int:
    """A slice's end as a row: a number, or a share with %; negative ones count from the end."""
    if not text:
        return missing
    number = int(text.rstrip("%"))
    number = rows * number // 100 if text.endswith("%") else number
    return max(0, rows + number) if number < 0 else min(rows, number)


def _is_set(place: str) -> bool:
    """Whether a place has splits of its own: a folder of a data set, or one of a hub."""
    return place.startswith("hf://") or Path(place).is_dir()
