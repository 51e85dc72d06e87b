"""Labels of a classification: uneven, rare, alone, or written in two ways."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tunesmith.data.codes import CODES
from tunesmith.data.findings import finding
from tunesmith.data.types import Example, Finding

IMBALANCE = 10
"""How many times more rows the largest label may have than the smallest that is seen at least twice."""
RARE = 5
"""Fewer rows than this make a label rare."""


def label_findings(examples: Sequence[Example]) -> list[Finding]:
    """What can be said of labels by counting them."""
    counts = Counter(example.expected for example in examples)
    found: list[Finding] = []
    if len(counts) == 1 and len(examples) > 1:
        label = next(iter(counts))
        found.append(finding("single_label", f"{CODES['single_label'].title}: {label!r}", count=len(examples)))
    rarer = label_spellings(counts)
    once = {label for label, count in counts.items() if count == 1}
    found += about_labels("label_seen_once", once, examples)
    found += about_labels("label_rare", {label for label, count in counts.items() if 1 < count < RARE}, examples)
    found += about_labels("label_variants", rarer, examples)
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


def label_spellings(counts: Mapping[str, int]) -> dict[str, str]:
    """Labels that differ from a commoner one only by case or spaces, each with the usual spelling."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        spellings[" ".join(label.casefold().split())].append(label)
    rarer: dict[str, str] = {}
    for variants in spellings.values():
        usual = max(variants, key=lambda label: (counts[label], label))
        rarer.update({label: usual for label in variants if label != usual})
    return rarer


def about_labels(code: str, labels: Iterable[str], examples: Sequence[Example]) -> list[Finding]:
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
