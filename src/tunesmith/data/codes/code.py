"""What a code stands for."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.data.types import Severity


@dataclass(frozen=True, slots=True)
class Code:
    """What a code stands for: `title` opens the message, `why` says what it does to a model, `fix` what to do."""

    severity: Severity
    title: str
    why: str
    fix: str
