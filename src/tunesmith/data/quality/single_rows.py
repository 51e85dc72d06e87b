"""What rows show each by itself: dirt, personal data and secrets, scripts and languages, in one pass over them.

What is seen of the parts of a file adds up to what is seen of the file, so parts can be looked at anywhere and in
several processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunesmith.data.findings import FindingLog
from tunesmith.data.quality.language import Tongues, look_at_language, tongue_findings
from tunesmith.data.quality.sensitive import look_for_sensitive
from tunesmith.data.quality.text import look_at_texts
from tunesmith.data.types import Example, Finding


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of the rows of one file, or of a part of one."""

    texts: FindingLog
    sensitive: FindingLog
    tongues: Tongues

    def absorb(self, later: Seen) -> None:
        """Add what was seen of the rows that follow."""
        self.texts.absorb(later.texts)
        self.sensitive.absorb(later.sensitive)
        self.tongues.absorb(later.tongues)


def look_at_rows(source: str, rows: Iterable[Example]) -> Seen:
    """Look at each row once; it may be one that is read from a disk."""
    seen = Seen(FindingLog(source), FindingLog(source), Tongues(FindingLog(source)))
    for row in rows:
        look_at_texts(row, seen.texts)
        look_for_sensitive(row, seen.sensitive)
        look_at_language(row, seen.tongues)
    return seen


def row_findings(source: str, rows: Sequence[Example], seen: Seen) -> list[Finding]:
    """Findings about what was seen of these rows, all of one file."""
    return [*seen.texts.findings(), *seen.sensitive.findings(), *tongue_findings(source, rows, seen.tongues)]
