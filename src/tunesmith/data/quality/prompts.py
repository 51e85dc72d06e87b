"""Prompts that change between rows when they should not, and answers that refuse."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
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
    for where, cut in (("begin", _head), ("end", _foot)):
        found += _frames(source, rows, where, cut)
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


def _frames(source: str, rows: Sequence[Example], where: str, cut: Callable[[str], str]) -> list[Finding]:
    asked = [row for row in rows if row.kind != "text" and row.question]
    if len(asked) < FRAME_ROWS:
        return []
    by_frame: dict[str, list[Example]] = defaultdict(list)
    for row in asked:
        by_frame[cut(row.question)].append(row)
    frame, usual = max(by_frame.items(), key=lambda item: len(item[1]))
    if len(usual) == len(asked) or len(usual) < FRAME_SHARE * len(asked) or len(frame) < FRAME_LENGTH:
        return []
    if len({row.question for row in usual}) < 2:  # one input many times is a copy, not a frame
        return []
    others = [row for row in asked if cut(row.question) != frame]
    lines = [row.line for row in others]
    message = f"{CODES['prompt_frame_varies'].title}: {len(usual):,} of {len(asked):,} {where} with {frame!r}"
    message += f", lines {shortened(lines)} do not"
    return [finding("prompt_frame_varies", message, lines, source=source, example=shown(others[0].question))]


def _refusals(source: str, rows: Sequence[Example]) -> list[Finding]:
    answered = [row for row in rows if row.kind == "answer"]
    refusing = [row for row in answered if refuses(row.expected)]
    if not refusing:
        return []
    share = len(refusing) / len(answered)
    code = "many_refusals" if share >= MANY_REFUSALS else "refusals"
    message = f"{CODES[code].title}: {len(refusing):,} of {len(answered):,} ({share:.1%})"
    lines = [row.line for row in refusing]
    return [finding(code, message, lines, source=source, example=shown(refusing[0].expected))]
