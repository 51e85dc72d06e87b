"""Which training rows are shown as examples in a few-shot prompt."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Sequence

from tunesmith.data.types import Example
from tunesmith.tasks.types import Task
from tunesmith.tasks.words import words

POOL = 64
"""Rows among which different ones are looked for; the search is quadratic."""


def draw_shots(train: Sequence[Example], task: Task, k: int, seed: int) -> tuple[Example, ...]:
    """k diverse training rows, drawn by seed; fewer where there are fewer rows.

    The rows for a smaller k are the first ones of those for a larger, so choosing k compares nested sets.
    Classification takes labels in turn. Other tasks take rows as different as possible from those before.
    """
    generator = random.Random(seed)
    drawn = _round_robin(train, task, generator) if task.name == "classification" else _different(train, generator)
    return tuple(drawn[:k])


def first_shots(train: Sequence[Example], k: int) -> tuple[Example, ...]:
    """The first k rows as they stand in the file: what somebody would take who does not look."""
    return tuple(sorted(train, key=lambda example: example.line)[:k])


def _round_robin(train: Sequence[Example], task: Task, generator: random.Random) -> list[Example]:
    """One row of each label, then a second of each, …; labels and the rows of each in random order."""
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in train:
        by_label[task.target(example)].append(example)
    groups = [by_label[label] for label in sorted(by_label)]
    for group in groups:
        generator.shuffle(group)
    generator.shuffle(groups)
    longest = max(map(len, groups), default=0)
    return [group[turn] for turn in range(longest) for group in groups if turn < len(group)]


def _different(train: Sequence[Example], generator: random.Random) -> list[Example]:
    """Farthest-first order of a random pool, by the share of words that two questions have in common.

    Rows longer than the median are left out: farthest-first likes odd long rows, and they would push all others out
    of the context.
    """
    if not train:
        return []
    sizes = [len(example.question) + len(example.expected) for example in train]
    median = statistics.median(sizes)
    short = [example for example, size in zip(train, sizes, strict=True) if size <= median]
    pool = generator.sample(short, min(POOL, len(short)))
    bags = [set(words(example.question)) for example in pool]
    chosen = [0]
    overlap = [_jaccard(bag, bags[0]) for bag in bags]
    while len(chosen) < len(pool):
        rest = [index for index in range(len(pool)) if index not in chosen]
        best = min(rest, key=lambda index: (overlap[index], index))
        chosen.append(best)
        overlap = [max(old, _jaccard(bag, bags[best])) for old, bag in zip(overlap, bags, strict=True)]
    return [pool[index] for index in chosen]


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0
