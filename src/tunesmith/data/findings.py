"""Collecting findings: many occurrences of one problem become one `Finding` with every line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunesmith.data.codes import CODES
from tunesmith.data.types import Finding

_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(slots=True)
class _Occurrences:
    first: int
    detail: str
    lines: list[int] = field(default_factory=list)
    example: str | None = None


class FindingLog:
    """Findings of one file, added line by line. The first occurrence of each (code, field) gives detail and example.

    `left_out` counts the records that were noted here and became no row. A log can be sent to another process.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.left_out = 0
        self._kinds: dict[tuple[str, str | None], _Occurrences] = {}

    def add(self, code: str, line: int, detail: str = "", *, field: str | None = None) -> None:
        """Note one occurrence of `code` on `line` (1-based). `detail` must not hold secrets."""
        kind = self._kinds.get((code, field))
        if kind is None:
            kind = self._kinds[(code, field)] = _Occurrences(line, detail)
        kind.lines.append(line)

    def leave_out(self, code: str, line: int, detail: str = "") -> None:
        """The same for a record that becomes no row for it."""
        self.add(code, line, detail)
        self.left_out += 1

    def add_shown(self, code: str, line: int, example: Callable[[], str], detail: str = "") -> None:
        """The same with an excerpt (without secrets), which is made for the first occurrence only."""
        self.add(code, line, detail)
        kind = self._kinds[(code, None)]
        if kind.example is None:
            kind.example = example()

    def absorb(self, later: FindingLog) -> None:
        """Add all that another log noted further on in the same file."""
        self.left_out += later.left_out
        for key, kind in later._kinds.items():
            known = self._kinds.get(key)
            if known is None:
                self._kinds[key] = _Occurrences(kind.first, kind.detail, list(kind.lines), kind.example)
            else:
                known.lines += kind.lines
                known.example = kind.example if known.example is None else known.example

    def has(self, code: str) -> bool:
        """Whether `code` was noted at all."""
        return any(known == code for known, _ in self._kinds)

    def findings(self) -> list[Finding]:
        """All findings, errors first, then in the order of their first line."""
        made = []
        for (code, name), kind in self._kinds.items():
            detail = f", {kind.detail}" if kind.detail else ""
            more = len(kind.lines) - 1
            others = "" if not more else f" (and {more:,} more)"
            message = f"{CODES[code].title}: line {kind.first}{detail}{others}"
            made.append(
                finding(
                    code,
                    message,
                    kind.lines,
                    field=name,
                    source=self.source,
                    example=kind.example,
                    detail=kind.detail,
                )
            )
        return in_order(made)


def finding(
    code: str,
    message: str,
    lines: Sequence[int] = (),
    *,
    count: int | None = None,
    field: str | None = None,
    source: str | None = None,
    example: str | None = None,
    detail: str = "",
) -> Finding:
    """A finding with severity, reason and fix from the table; `count` is the number of lines unless given."""
    return Finding(
        code=code,
        severity=CODES[code].severity,
        message=message,
        fix=CODES[code].fix,
        count=len(lines) if count is None else count,
        lines=tuple(sorted(set(lines))),
        field=field,
        source=source,
        why=CODES[code].why,
        example=example,
        detail=detail,
    )


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Errors before warnings before infos, each by first line."""
    return sorted(findings, key=lambda f: (_ORDER[f.severity], f.lines[0] if f.lines else 0))


def shortened(lines: Sequence[int], limit: int = 5) -> str:
    """`3, 8, 12 and 40 more`, for messages; the finding itself keeps every line."""
    shown = ", ".join(str(line) for line in lines[:limit])
    return shown if len(lines) <= limit else f"{shown} and {len(lines) - limit:,} more"
