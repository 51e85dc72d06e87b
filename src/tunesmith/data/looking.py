"""A file read, made into examples and looked at row by row, all in one pass and on all cores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.data.examples import LoadResult, scan_examples
from tunesmith.data.findings import FindingLog
from tunesmith.data.quality import Seen, look_at_rows
from tunesmith.data.transport import Shipped
from tunesmith.data.types import Example
from tunesmith.recipe.schema import Data


def load_and_look(
    spec: Data, source: str | Path, *, task_type: str = "auto", processes: int | None = None
) -> tuple[LoadResult, Seen | None]:
    """What `load_examples` gives, and what `look_at_rows` sees of the examples; None where there are none.

    The examples of a large file come without their `values`, so that a million rows of half a kilobyte take about
    one gigabyte. Raises as `load_examples` does.
    """
    scan = scan_examples(spec, source, _look, task_type=task_type, processes=processes)
    seen: Seen | None = None
    for _, its in scan.results:
        if seen is None:
            seen = its
        elif its is not None:
            seen.absorb(its)
    examples = _told_apart(block for block, _ in scan.results)
    return LoadResult(examples, scan.findings, scan.format, scan.rows, scan.reason), seen


def load_only(spec: Data, source: str | Path, *, task_type: str = "auto", processes: int | None = None) -> LoadResult:
    """The same without looking at the examples."""
    scan = scan_examples(spec, source, _ship, task_type=task_type, processes=processes)
    return LoadResult(_told_apart(scan.results), scan.findings, scan.format, scan.rows, scan.reason)


def _told_apart(blocks: Iterable[Sequence[Example]]) -> list[Example]:
    """All examples, with ids that tell equal ones apart as those of `load_examples` do."""
    counts: Counter[str] = Counter()
    examples = []
    for block in blocks:
        for example in block:
            counts[example.id] += 1
            count = counts[example.id]
            examples.append(example if count == 1 else replace(example, id=f"{example.id}-{count}"))
    return examples


def _ship(examples: Sequence[Example], log: FindingLog) -> Shipped:
    return Shipped(examples)


def _look(examples: Sequence[Example], log: FindingLog) -> tuple[Shipped, Seen | None]:
    """The work on one block."""
    if not examples:
        return Shipped(), None
    return Shipped(examples), look_at_rows(examples[0].source, examples)
