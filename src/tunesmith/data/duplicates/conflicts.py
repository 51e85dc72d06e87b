"""The same input with different answers, whatever the case and spacing of either."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tunesmith.data.codes import CODES
from tunesmith.data.duplicates.texts import asked, normalised, text_key, turn_text
from tunesmith.data.findings import finding, shortened
from tunesmith.data.quality.masking import shown
from tunesmith.data.types import Example, Finding


def conflicts_of(examples: Sequence[Example]) -> list[list[int]]:
    """Places of rows that have one input and different answers; only rows whose answer is to be learnt as it is."""
    first: dict[int, int] = {}
    groups: dict[int, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        if example.kind != "answer":
            continue
        turns = [f"{turn.role} {normalised(turn_text(turn))}" for turn in asked(example)]
        key = text_key("\n".join([*turns, *example.tools]))
        earlier = first.setdefault(key, place)
        if earlier != place:
            groups[key].append(place)
    found = []
    for key, places in groups.items():
        group = [first[key], *places]
        if len({_answer(examples[place]) for place in group}) > 1:
            found.append(group)
    return found


def conflict_findings(source: str, rows: Sequence[Example]) -> list[Finding]:
    """One finding with the lines of all conflicts in one file."""
    conflicts = conflicts_of(rows)
    if not conflicts:
        return []
    lines = [rows[place].line for place in conflicts[0]]
    inputs = f"{len(conflicts):,} inputs, such as" if len(conflicts) > 1 else "one input,"
    message = f"{CODES['conflicting_answers'].title}: {inputs} lines {shortened(sorted(lines))}"
    answers = dict.fromkeys(rows[place].expected for place in conflicts[0])
    example = f"{shown(rows[conflicts[0][0]].question)} → {' / '.join(shown(answer, 40) for answer in answers)}"
    every = [rows[place].line for group in conflicts for place in group]
    return [
        finding("conflicting_answers", message, every, count=len(conflicts), source=source, example=example),
    ]


def _answer(example: Example) -> str:
    return normalised(example.expected or turn_text(example.messages[-1]))
