"""Exact copies within a file, and rows that differ from another only in what nobody sees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tunesmith.data.codes import CODES
from tunesmith.data.duplicates.texts import normalised, text_key, turn_text
from tunesmith.data.findings import finding, shortened
from tunesmith.data.types import Example, Finding


def content_of(example: Example) -> str:
    """The content hash inside the id, without the counter of repeated rows."""
    return example.id.split("-", 1)[0]


def copies_of(examples: Sequence[Example]) -> list[list[int]]:
    """Places of rows with exactly the same content, first one first; only groups of two or more."""
    return _repeated(content_of(example) for example in examples)


def lookalikes_of(examples: Sequence[Example]) -> list[list[int]]:
    """Places of rows that are the same after normalising and not all exact copies; of each content the first row."""
    first_of: dict[str, int] = {}
    for place, example in enumerate(examples):
        first_of.setdefault(content_of(example), place)
    places = list(first_of.values())
    groups = _repeated(_normal_key(examples[place]) for place in places)
    return [[places[number] for number in group] for group in groups]


def duplicate_findings(source: str, rows: Sequence[Example]) -> list[Finding]:
    """Exact and normalised copies among the rows of one file; one error where all rows are the same."""
    copies = copies_of(rows)
    if copies and len(copies[0]) == len(rows):
        lines = [row.line for row in rows]
        message = f"{CODES['identical_rows'].title}: {len(rows):,} copies of line {lines[0]}"
        return [finding("identical_rows", message, lines, source=source)]
    found = []
    if copies:
        count = sum(len(group) - 1 for group in copies)
        largest = [rows[place].line for place in max(copies, key=len)]
        message = (
            f"{count:,} {CODES['duplicate_row'].title}; lines {shortened(largest)} are the same"
            if count > 1
            else f"1 row is an exact copy of another: lines {shortened(largest)}"
        )
        found.append(finding("duplicate_row", message, _lines(rows, copies), count=count, source=source))
    alike = lookalikes_of(rows)
    if alike:
        count = sum(len(group) - 1 for group in alike)
        shown = [rows[place].line for place in alike[0]]
        message = f"{CODES['duplicate_normalised'].title}: {count:,}, such as lines {shortened(shown)}"
        found.append(finding("duplicate_normalised", message, _lines(rows, alike), count=count, source=source))
    return found


def _normal_key(example: Example) -> int:
    turns = (*example.messages, *example.rejected)
    said = [f"{turn.role} {turn.weight} {normalised(turn_text(turn))}" for turn in turns]
    return text_key("\n".join([*said, *example.tools, str(example.rating)]))


def _repeated(keys: Iterable[object]) -> list[list[int]]:
    """Places of each key that comes more than once, without a list for every other key."""
    first: dict[object, int] = {}
    groups: dict[object, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        earlier = first.setdefault(key, place)
        if earlier != place:
            groups[key].append(place)
    return [[first[key], *places] for key, places in groups.items()]


def _lines(rows: Sequence[Example], groups: Iterable[Iterable[int]]) -> list[int]:
    return [rows[place].line for group in groups for place in group]
