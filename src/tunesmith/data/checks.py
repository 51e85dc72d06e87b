"""What is wrong with the examples as a whole: every check of the room, in one call.

Each check is a file of its own, under `duplicates/` (copies, likeness, conflicts, leaks) and `quality/` (texts,
personal data, labels, prompts). Here they are called, and nothing is decided but which of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from tunesmith.data.codes import CODES
from tunesmith.data.duplicates.conflicts import conflict_findings
from tunesmith.data.duplicates.exact import duplicate_findings
from tunesmith.data.duplicates.leaks import LeakedRow, leak_findings, leaked_rows, trained_test_findings
from tunesmith.data.duplicates.near import THRESHOLD, NearDuplicates, find_near_duplicates
from tunesmith.data.duplicates.shingles import Tell, silent
from tunesmith.data.duplicates.texts import common_length
from tunesmith.data.findings import finding, in_order, shortened
from tunesmith.data.quality import (
    Seen,
    detectable_difference,
    label_findings,
    look_at_rows,
    noise_findings,
    prompt_findings,
    row_findings,
)
from tunesmith.data.quality.labels import about_labels
from tunesmith.data.quality.masking import masked, shown
from tunesmith.data.task_type import is_json_answer
from tunesmith.data.types import Example, Finding, Splits
from tunesmith.recipe.schema import ONE_LABEL

Depth = Literal["quick", "usual", "full"]
"""quick: nothing that compares rows by likeness; usual: that too; full: labels are doubted as well."""
Leaks = Mapping[str, tuple[LeakedRow, ...]]
"""Leaked rows of the parts `test` and `validation`."""

FEW_ROWS = 100
"""Fewer rows get a warning."""
FEW_TEST_ROWS = 100
"""With fewer test rows the 95 % interval around an accuracy of one half is wider than 10 points to each side."""


def check_examples(
    examples: Sequence[Example],
    *,
    task_type: str,
    splits: Splits | None = None,
    depth: Depth = "usual",
    near: NearDuplicates | None = None,
    leaks: Leaks | None = None,
    seen: Seen | None = None,
    processes: int | None = 1,
    tell: Tell = silent,
) -> list[Finding]:
    """Findings about examples that are each fine by themselves.

    `examples` may come from several files; copies and conflicts are looked for within each. With `splits`, test and
    validation rows that were seen before are listed, whole rows and inputs alone, exact and near. `near`,
    `leaks` and `seen` (see `look_at_rows`) are what is known already of these very examples and splits. `processes` may
    compare rows, None stands for one per core.
    """
    if not examples:
        return [finding("no_usable_rows", CODES["no_usable_rows"].title)]
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_source[example.source].append(example)
    found: list[Finding] = []
    alone = len(by_source) == 1
    for source, rows in by_source.items():
        found += _file_findings(source, rows, task_type, seen if alone else None)
        known = near if alone else None
        if known is None and depth != "quick":
            known = find_near_duplicates(rows, tell=tell, processes=processes)
        found += _near_findings(source, rows, known) if known is not None else []
    if task_type in ONE_LABEL:
        found += label_findings(examples)
        found += noise_findings(examples, tell) if depth == "full" else []
    train_rows = len(splits.train) if splits is not None else len(examples)
    if train_rows < FEW_ROWS:
        message = f"{CODES['too_few_rows'].title}: {train_rows} to train on"
        found.append(finding("too_few_rows", message, count=train_rows))
    if splits is not None:
        known_leaks = split_leaks(splits, depth=depth, tell=tell) if leaks is None else leaks
        found += _split_findings(splits, task_type, known_leaks)
    return in_order(found)


def split_leaks(
    splits: Splits, *, depth: Depth = "usual", clusters: Mapping[str, int] | None = None, tell: Tell = silent
) -> dict[str, tuple[LeakedRow, ...]]:
    """Test rows that training or validation holds, and validation rows that training holds, row by row.

    `clusters` are the groups of likeness in the training file by id: of parts drawn from it that hold no group in
    common it is known that none is nearly in the other.
    """
    seen = {"test": (*splits.train, *splits.validation), "validation": splits.train}
    found = {}
    for name, earlier in seen.items():
        held_out: tuple[Example, ...] = getattr(splits, name)
        near = depth != "quick" and not (clusters is not None and _apart(held_out, earlier, clusters))
        found[name] = leaked_rows(held_out, earlier, near=near, tell=tell)
    return found


def _apart(held_out: Sequence[Example], seen: Sequence[Example], clusters: Mapping[str, int]) -> bool:
    """Whether both are parts of one file and no group of likeness is in both."""
    if len({row.source for row in (*held_out, *seen)}) > 1:
        return False
    return not {clusters[row.id] for row in held_out} & {clusters[row.id] for row in seen}


def _file_findings(source: str, rows: Sequence[Example], task_type: str, seen: Seen | None) -> list[Finding]:
    """Everything about the rows of one file but their likeness."""
    found = duplicate_findings(source, rows)
    if any(f.code == "identical_rows" for f in found):
        return found
    found += conflict_findings(source, rows)
    found += row_findings(source, rows, seen if seen is not None else look_at_rows(source, rows))
    found += prompt_findings(source, rows)
    if task_type == "extraction":
        broken = [row for row in rows if row.kind == "answer" and not is_json_answer(row.expected)]
        if broken:
            message = f"{CODES['answer_not_json'].title}: line {broken[0].line}, {shown(broken[0].expected, 40)!r}"
            found.append(finding("answer_not_json", message, [row.line for row in broken], source=source))
    return found


def _near_findings(source: str, rows: Sequence[Example], near: NearDuplicates) -> list[Finding]:
    if not near.pairs:
        return []
    likest = max(near.pairs, key=lambda pair: pair.similarity)
    one, other = rows[likest.first], rows[likest.second]
    lines = sorted({rows[place].line for pair in near.pairs for place in (pair.first, pair.second)})
    message = (
        f"{CODES['near_duplicate'].title}: {len(near.pairs):,} (at least {THRESHOLD:.0%} of the 5-letter pieces in "
        f"common), lines {shortened(lines)}; lines {one.line} and {other.line} are {likest.similarity:.0%} alike"
    )
    example = " ~ ".join(_where_they_differ(one, other))
    return [finding("near_duplicate", message, lines, count=len(near.pairs), source=source, example=example)]


def _where_they_differ(one: Example, other: Example) -> tuple[str, str]:
    """Excerpts of two rows from a little before their first difference."""
    texts = [" ".join(masked(f"{row.question} → {row.expected}").split()) for row in (one, other)]
    begin = max(0, common_length(texts[0], texts[1]) - 30)
    cut = [f"{'…' if begin else ''}{text[begin : begin + 70]}{'…' if len(text) > begin + 70 else ''}" for text in texts]
    return cut[0], cut[1]


def _split_findings(splits: Splits, task_type: str, leaks: Leaks) -> list[Finding]:
    found = trained_test_findings(leaks.get("test", ()), splits.test)
    found += leak_findings("test", leaks.get("test", ()), splits.test)
    found += leak_findings("validation", leaks.get("validation", ()), splits.validation)
    if splits.test and len(splits.test) < FEW_TEST_ROWS:
        points = 100 * detectable_difference(len(splits.test))
        message = (
            f"{CODES['few_test_rows'].title}: {len(splits.test)}; a difference of less than about {points:.0f} points "
            "between two models cannot be told from chance"
        )
        found.append(finding("few_test_rows", message, count=len(splits.test)))
    if task_type in ONE_LABEL:
        known = {example.expected for example in splits.train}
        strangers = {example.expected for example in splits.test} - known
        found += about_labels("label_not_in_train", strangers, splits.test)
    return found
