"""What is wrong with the examples as a whole: copies, conflicts, leaks, labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tunesmith.data.codes import CODES
from tunesmith.data.findings import finding, in_order, shortened
from tunesmith.data.splits import PromptKey, prompt_key
from tunesmith.data.task_type import is_json_answer
from tunesmith.data.types import Example, Finding, Splits

FEW_ROWS = 100
"""Fewer rows get a warning."""
FEW_TEST_ROWS = 100
"""With fewer test rows the 95 % interval around an accuracy of one half is wider than 10 points to each side."""
IMBALANCE = 10
"""How many times more rows the largest label may have than the smallest that is seen at least twice."""


def check_examples(examples: Sequence[Example], *, task_type: str, splits: Splits | None = None) -> list[Finding]:
    """Findings about examples that are each fine by themselves.

    `examples` may come from several files; copies and conflicts are looked for within each. With `splits`, test and
    validation rows that also are in training are listed, whole rows and inputs alone.
    """
    if not examples:
        return [finding("no_usable_rows", CODES["no_usable_rows"].title)]
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_source[example.source].append(example)
    found: list[Finding] = []
    for source, rows in by_source.items():
        found += _row_findings(source, rows, task_type)
    if task_type == "classification":
        found += _label_findings(examples)
    train_rows = len(splits.train) if splits is not None else len(examples)
    if train_rows < FEW_ROWS:
        message = f"{CODES['too_few_rows'].title}: {train_rows} to train on"
        found.append(finding("too_few_rows", message, count=train_rows))
    if splits is not None:
        found += _split_findings(splits, task_type)
    return in_order(found)


def _row_findings(source: str, rows: Sequence[Example], task_type: str) -> list[Finding]:
    """Copies, conflicts, copied inputs and broken JSON within one file."""
    by_content: dict[str, list[int]] = defaultdict(list)
    by_prompt: dict[PromptKey, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_content[_content(row)].append(row.line)
        by_prompt[prompt_key(row)][row.expected].append(row.line)
    if len(by_content) == 1 and len(rows) > 1:
        lines = [row.line for row in rows]
        message = f"{CODES['identical_rows'].title}: {len(rows):,} copies of line {lines[0]}"
        return [finding("identical_rows", message, lines, source=source)]

    found = []
    copies = [lines for lines in by_content.values() if len(lines) > 1]
    if copies:
        count = sum(len(lines) - 1 for lines in copies)
        largest = max(copies, key=len)
        message = (
            f"{count:,} {CODES['duplicate_row'].title}; lines {shortened(largest)} are the same"
            if count > 1
            else f"1 row is an exact copy of another: lines {shortened(largest)}"
        )
        found.append(finding("duplicate_row", message, _flat(copies), count=count, source=source))
    conflicts = [answers for answers in by_prompt.values() if len(answers) > 1]
    if conflicts:
        first = sorted(line for lines in conflicts[0].values() for line in lines)
        message = f"{CODES['conflicting_answers'].title}: {len(conflicts):,} inputs, such as lines {shortened(first)}"
        lines = _flat(lines for answers in conflicts for lines in answers.values())
        found.append(finding("conflicting_answers", message, lines, count=len(conflicts), source=source))
    same = [row.line for row in rows if row.expected.strip() == row.question.strip()]
    if same:
        message = f"{CODES['answer_equals_input'].title}: lines {shortened(same)}"
        found.append(finding("answer_equals_input", message, same, source=source))
    if task_type == "extraction":
        broken = [row for row in rows if not is_json_answer(row.expected)]
        if broken:
            message = f"{CODES['answer_not_json'].title}: line {broken[0].line}, {broken[0].expected[:40]!r}"
            found.append(finding("answer_not_json", message, [row.line for row in broken], source=source))
    return found


def _label_findings(examples: Sequence[Example]) -> list[Finding]:
    counts = Counter(example.expected for example in examples)
    found: list[Finding] = []
    if len(counts) == 1 and len(examples) > 1:
        label = next(iter(counts))
        found.append(finding("single_label", f"{CODES['single_label'].title}: {label!r}", count=len(examples)))
    once = {label for label, count in counts.items() if count == 1}
    found += _about_labels("label_seen_once", once, examples)

    spellings: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        spellings[" ".join(label.casefold().split())].append(label)
    rarer: dict[str, str] = {}
    for variants in spellings.values():
        usual = max(variants, key=lambda label: (counts[label], label))
        rarer.update({label: usual for label in variants if label != usual})
    found += _about_labels("label_variants", rarer, examples)

    repeated = {label: count for label, count in counts.items() if count > 1}
    if len(repeated) > 1:
        most, least = max(repeated, key=lambda k: (repeated[k], k)), min(repeated, key=lambda k: (repeated[k], k))
        if repeated[most] >= IMBALANCE * repeated[least]:
            message = (
                f"{CODES['label_imbalance'].title}: {most!r} has {repeated[most]:,} of {len(examples):,} rows, "
                f"{least!r} has {repeated[least]:,}"
            )
            found.append(finding("label_imbalance", message, count=1))
    return found


def _about_labels(code: str, labels: Iterable[str], examples: Sequence[Example]) -> list[Finding]:
    """One finding per file with all lines of these labels; a mapping says which label each resembles."""
    wanted = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels, "")
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        if example.expected in wanted:
            by_source[example.source].append(example)
    found = []
    for source, rows in by_source.items():
        names = list(dict.fromkeys(row.expected for row in rows))
        shown = [f"{name!r} beside {wanted[name]!r}" if wanted[name] else repr(name) for name in names[:5]]
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        message = f"{CODES[code].title}: {', '.join(shown)}{more}"
        found.append(finding(code, message, [row.line for row in rows], count=len(names), source=source))
    return found


def _split_findings(splits: Splits, task_type: str) -> list[Finding]:
    found = _leaks("test", splits.test, [*splits.train, *splits.validation])
    found += _leaks("validation", splits.validation, splits.train)
    if splits.test and len(splits.test) < FEW_TEST_ROWS:
        message = f"{CODES['few_test_rows'].title}: {len(splits.test)}"
        found.append(finding("few_test_rows", message, count=len(splits.test)))
    if task_type == "classification":
        known = {example.expected for example in splits.train}
        strangers = {example.expected for example in splits.test} - known
        found += _about_labels("label_not_in_train", strangers, splits.test)
    return found


def _leaks(name: str, held_out: Sequence[Example], seen: Sequence[Example]) -> list[Finding]:
    """Rows of a held-out part whose whole content, or only whose input, was seen before."""
    contents = {_content(example): example for example in reversed(seen)}
    prompts = {prompt_key(example): example for example in reversed(seen)}
    whole, inputs = [], []
    for example in held_out:
        if (original := contents.get(_content(example))) is not None:
            whole.append((example, original))
        elif (original := prompts.get(prompt_key(example))) is not None:
            inputs.append((example, original))
    found = []
    for code, pairs in ((f"{name}_leak_row", whole), (f"{name}_leak_prompt", inputs)):
        if pairs:
            leaked, original = pairs[0]
            message = (
                f"{CODES[code].title}: {len(pairs):,} of {len(held_out):,}; "
                f"line {leaked.line} is line {original.line} of {original.source}"
            )
            found.append(finding(code, message, [pair[0].line for pair in pairs], source=leaked.source))
    return found


def _content(example: Example) -> str:
    """The content hash inside the id, without the counter of repeated rows."""
    return example.id[:16]


def _flat(lists: Iterable[Iterable[int]]) -> list[int]:
    return [line for lines in lists for line in lines]
