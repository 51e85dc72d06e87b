"""Findings about personal data and secrets; what was found is never printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from tunesmith.data.findings import FindingLog
from tunesmith.data.quality.hits import Hit
from tunesmith.data.quality.masking import mask, name_of, sensitive_hits
from tunesmith.data.types import Example, Finding

_AROUND = 30
"""Characters shown on either side of what was found."""


def sensitive_findings(source: str, rows: Sequence[Example]) -> list[Finding]:
    """One finding for each kind, with the lines of all rows that hold some; tool calls and results are read too."""
    log = FindingLog(source)
    for row in rows:
        look_for_sensitive(row, log)
    return log.findings()


def look_for_sensitive(row: Example, log: FindingLog) -> None:
    """Note each kind that one row holds, once."""
    seen: set[str] = set()
    for text in _texts(row):
        hits = sensitive_hits(text)
        for place, hit in enumerate(hits):
            if hit.code not in seen:
                seen.add(hit.code)
                log.add_shown(hit.code, row.line, partial(_around, text, hits, place))


def _around(text: str, hits: Sequence[Hit], place: int) -> str:
    """What stands around a hit, all hits masked before anything is cut."""
    before, after = mask(text[: hits[place].start], hits[:place]), hits[place]
    rest = [Hit(hit.code, hit.start - after.end, hit.end - after.end) for hit in hits[place + 1 :]]
    behind = mask(text[after.end :], rest)
    return " ".join(f"{before[-_AROUND:]}{name_of(after)}{behind[:_AROUND]}".split())


def _texts(row: Example) -> Iterator[str]:
    for turn in (*row.messages, *row.rejected):
        yield turn.content
        for call in turn.tool_calls:
            yield call.arguments
