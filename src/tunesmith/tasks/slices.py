"""Slices: groups of rows on which a model may be worse than on all, by what the task knows of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.types import Example
from tunesmith.tasks.types import Task
from tunesmith.tasks.words import words


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows (ids, in the order of the examples) whose `division` is `value`, such as label = lost_card."""

    division: str
    value: str
    ids: tuple[str, ...]

    @property
    def name(self) -> str:
        """Both in words: `label: lost_card`."""
        return f"{self.division}: {self.value}"


def slices_of(task: Task, examples: Sequence[Example], *, at_least: int = 1) -> tuple[Slice, ...]:
    """Every slice with at least so many rows: those of the task, and rows by the length of their input.

    Inputs are short, middling or long by the thirds of the examples' own lengths in words. A division of which all
    rows are in one slice is left out, as it says nothing beside the whole.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    lengths = [len(words(example.question)) for example in examples]
    cuts = statistics.quantiles(lengths, n=3, method="inclusive") if len(lengths) > 1 else []
    for example, length in zip(examples, lengths, strict=True):
        divisions = {**task.slices(example), "input": ("short", "middle", "long")[sum(length > cut for cut in cuts)]}
        for division, value in divisions.items():
            groups[division, value].append(example.id)
    whole = {division for (division, _), ids in groups.items() if len(ids) == len(examples)}
    return tuple(
        Slice(division, value, tuple(ids))
        for (division, value), ids in sorted(groups.items())
        if len(ids) >= at_least and division not in whole
    )
