"""Prompts that change between rows when they should not, and answers that refuse."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from tunesmith.data.codes import CODES
from tunesmith.data.findings import finding, shortened
from tunesmith.data.quality.masking import shown
from tunesmith.data.types import Example, Finding

USUAL_SHARE = 0.5
"""Share of the rows from which a system message is the usual one; with none so common they are meant to differ."""
FRAME_SHARE = 0.8
FRAME_ROWS, FRAME_LENGTH = 20, 12
"""Rows from which, and characters for which, a common beginning or ending of inputs counts as a frame."""
MANY_REFUSALS = 0.05

_REFUSAL = re.compile(
    r"^\W*(?:(?:i'm|i am|we're|we are)\s+(?:very |so |really |truly )?(?:sorry|afraid|unable)|sorry,|i apologi[sz]e|"
    r"unfortunately,? i (?:can|am)|i (?:can(?:'|no)t|am not able to|won't|will not|must decline)\s+(?:\w+\s+)?"
    r"(?:help|assist|provide|answer|do (?:that|this|it)|comply|fulfil|discuss|create|write|give|share|support|engage)|"
    r"as an? (?:ai|artificial|language|large language|virtual)|es tut mir leid|désolé|lo siento|je ne peux pas)",
    re.I,
)
_REFUSED = re.compile(
    r"\b(?:can(?:'t|not| not)|won't|unable to|not able to|not allowed to|not permitted to|must decline|decline to|"
    r"against my|don't have (?:access|the ability|personal)|kann (?:ich )?(?:dabei |das )?nicht|ne peux pas|no puedo)"
    r"\b",
    re.I,
)


def prompt_findings(source: str, rows: Sequence[Example]) -> list[Finding]:
    """System messages and frames that vary, and the share of refusals, in one file."""
    found = _systems(source, rows)
    found += _frames(source, rows)
    return [*found, *_refusals(source, rows)]


def refuses(answer: str) -> bool:
    """Whether an answer opens as refusals do and says that something cannot be done."""
    opening = answer[:400].replace("\u2019", "'")
    return _REFUSAL.match(opening) is not None and _REFUSED.search(opening) is not None


def _systems(source: str, rows: Sequence[Example]) -> list[Finding]:
    counts: Counter[str | None] = Counter(_system(row) for row in rows)
    if len(counts) < 2:
        return []
    usual, most = counts.most_common(1)[0]
    if most < USUAL_SHARE * len(rows):
        return []
    others = [row for row in rows if _system(row) != usual]
    said = "no system message" if usual is None else f"the system message {shown(usual, 40)!r}"
    message = (
        f"{CODES['system_prompt_varies'].title}: {len(others):,} of {len(rows):,} rows, {len(counts) - 1:,} variants; "
        f"most rows have {said}"
    )
    example = shown(_system(others[0]) or "(none)")
    return [finding("system_prompt_varies", message, [r.line for r in others], source=source, example=example)]


def _system(row: Example) -> str | None:
    return next((turn.content for turn in row.messages if turn.role in ("system", "developer")), None)


def _head(text: str) -> str:
    return text[:FRAME_LENGTH]


def _foot(text: str) -> str:
    return text[-FRAME_LENGTH:]


class _Majority:
    """What comes more than half of the time, if anything does, by one pair of a candidate and its lead (Boyer and
    Moore 1991, MJRTY): of n values, of which one comes m times, that one leads by at least 2m - n in the end.
    """

    def __init__(self) -> None:
        self.candidate, self.lead = "", 0

    def take(self, value: str) -> None:
        """Vote for a value."""
        if not self.lead:
            self.candidate = value
        self.lead += 1 if value == self.candidate else -1


def _frames(source: str, rows: Sequence[Example]) -> list[Finding]:
    """Inputs that do not begin, or do not end, as nearly all others do."""
    asked = 0
    ends: tuple[tuple[str, Callable[[str], str], _Majority], ...] = (
        ("begin", _head, _Majority()),
        ("end", _foot, _Majority()),
    )
    for row in rows:
        if question := _question(row):
            asked += 1
            for _, cut, votes in ends:
                votes.take(cut(question))
    if asked < FRAME_ROWS:
        return []
    found = []
    for where, cut, votes in ends:
        frame = votes.candidate
        if votes.lead < (2 * FRAME_SHARE - 1) * asked - 1 or votes.lead == asked or len(frame) < FRAME_LENGTH:
            continue
        others = [row for row in rows if (question := _question(row)) and cut(question) != frame]
        usual = (question for row in rows if (question := _question(row)) and cut(question) == frame)
        alike = asked - len(others)
        if not others or alike < FRAME_SHARE * asked or len(set(usual)) < 2:  # one input many times is a copy
            continue
        lines = [row.line for row in others]
        message = f"{CODES['prompt_frame_varies'].title}: {alike:,} of {asked:,} {where} with {frame!r}"
        message += f", lines {shortened(lines)} do not"
        example = shown(others[0].question)
        found.append(finding("prompt_frame_varies", message, lines, source=source, example=example))
    return found


def _question(row: Example) -> str:
    return "" if row.kind == "text" else row.question


def _refusals(source: str, rows: Sequence[Example]) -> list[Finding]:
    answered = 0
    refusing = []
    for row in rows:
        if row.kind == "answer":
            answered += 1
            if refuses(row.expected):
                refusing.append(row)
    if not refusing:
        return []
    share = len(refusing) / answered
    code = "many_refusals" if share >= MANY_REFUSALS else "refusals"
    message = f"{CODES[code].title}: {len(refusing):,} of {answered:,} ({share:.1%})"
    lines = [row.line for row in refusing]
    return [finding(code, message, lines, source=source, example=shown(refusing[0].expected))]
