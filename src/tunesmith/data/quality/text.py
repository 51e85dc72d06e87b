"""Dirt in single texts: answers that say nothing, broken encoding, invisible characters, markup, special tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import partial

from tunesmith.data.findings import FindingLog
from tunesmith.data.quality.masking import masked, shown
from tunesmith.data.types import Example, Finding

_PLACEHOLDER_ANSWERS = {
    "n/a",
    "na",
    "none",
    "null",
    "nil",
    "nan",
    "todo",
    "tbd",
    "tba",
    "undefined",
    "lorem ipsum",
    "xxx",
}
_CODE_POINTS = (
    "\u20ac\x81\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\x8d\u017d\x8f"
    "\x90\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\x9d\u017e\u0178"
)
"""What Windows-1252 makes of the bytes 0x80 to 0x9F; its five gaps as Latin-1 reads them."""
_MARKS = "\u2026\u2018\u2019\u201c\u201d\u201e\u2022\u2013\u2014"
"""Punctuation that may well stand behind a capital Ä or Å."""
_BYTE = {character: 0x80 + place for place, character in enumerate(_CODE_POINTS)}
_TAIL = "[\xa0-\xbf\x80-\x9f" + re.escape("".join(c for c in _CODE_POINTS if ord(c) > 0xFF)) + "]"
_MOJIBAKE = re.compile(f"(?:[\xc2-\xdf]{_TAIL}|[\xe0-\xef]{_TAIL}{{2}}|[\xf0-\xf4]{_TAIL}{{3}})+")
_USUAL = re.compile(
    "[\u00a0-\u017f\u2010-\u203f\u20a0-\u20bf\u2100-\u2127\u2190-\u2193\u2200-\u22ff\U0001f300-\U0001faff]+"
)
"""Letters, signs and pictures that are often broken; anything else decoded by chance needs two in a row."""
_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060-\u2064\u202a-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\ue000-\uf8ff\U000f0000-\U0010ffff]"
)
"""Control characters, soft hyphen, zero-width and direction marks, private use. Joiners stay: scripts need them."""
_ASCII_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|strong|em|ul|ol|li|table|tr|td|th|h[1-6]|script|style|img|font|pre|sup|sub|blockquote)"
    r"(?:\s[^<>]*)?/?>|&(?:amp|lt|gt|nbsp|quot|apos|rsquo|lsquo|ldquo|rdquo|ndash|mdash|hellip|#\d{2,6}|#x[0-9a-fA-F]{2,6});",
    re.I,
)
SPECIAL_TOKEN = re.compile(
    r"<\|[A-Za-z][\w ]{1,40}\|>|<｜[^<>｜]{1,40}｜>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<(?:bos|eos|pad|unk)>|\[(?:CLS|SEP|MASK|PAD|UNK)\]"
)
"""Tokens that chat templates of well-known families give a meaning to."""


def text_findings(source: str, rows: Sequence[Example]) -> list[Finding]:
    """What is wrong with single texts of one file, a finding for each kind with all lines."""
    log = FindingLog(source)
    for row in rows:
        look_at_texts(row, log)
    return log.findings()


def look_at_texts(row: Example, log: FindingLog) -> None:
    """Note what is wrong with the texts of one row."""
    _answer(row, log)
    texts = [turn.content for turn in (*row.messages, *row.rejected)]
    for text in texts:
        if not text.isascii():
            _characters(text, row.line, log)
        elif (odd := _ASCII_ODD.search(text)) is not None:
            log.add_shown("odd_characters", row.line, partial(shown, text), named(odd.group()))
    for text in texts:
        if ("<" in text or "&" in text) and (tag := _HTML.search(text)) is not None:
            log.add_shown("html_remnants", row.line, partial(_near, text, tag), repr(tag.group()[:30]))
            break
    for text in texts:
        if ("<" in text or "[" in text) and (token := SPECIAL_TOKEN.search(text)) is not None:
            # The words that hosted services use for the same fault.
            log.add("special_tokens", row.line, f"message contains an invalid token: {token.group()}")
            break


def mojibake_in(text: str) -> re.Match[str] | None:
    """The first place whose characters are UTF-8 read as Windows-1252 (or Latin-1) without doubt."""
    if text.isascii():
        return None
    return next((match for match in _MOJIBAKE.finditer(text) if _decoded(match) is not None), None)


def without_mojibake(text: str) -> str:
    """The text with such places decoded; twice, for text that was broken twice."""
    for _ in range(2):
        if text.isascii():
            break
        text = _MOJIBAKE.sub(lambda match: _decoded(match) or match.group(), text)
    return text


def without_odd_characters(text: str) -> str:
    """The text without control, invisible and private characters."""
    return _ODD.sub("", text)


def named(character: str) -> str:
    """`U+200B ZERO WIDTH SPACE`."""
    return f"U+{ord(character):04X} {unicodedata.name(character, 'without a name')}"


def says_nothing(answer: str) -> bool:
    """Whether an answer holds no letter, digit or symbol, or is a placeholder."""
    stripped = answer.strip()
    if stripped.casefold() in _PLACEHOLDER_ANSWERS:
        return True
    return not any(c.isalnum() or unicodedata.category(c).startswith(("S", "M")) for c in stripped)


def _answer(row: Example, log: FindingLog) -> None:
    if row.kind not in ("answer", "rated") or not row.expected.strip() or row.expected[0] in "[{":
        return
    if len(row.expected) <= 40 and says_nothing(row.expected):
        log.add_shown("near_empty_answer", row.line, partial(shown, row.question), repr(row.expected.strip()))
    if row.expected.strip() == row.question.strip():
        log.add_shown("answer_equals_input", row.line, partial(shown, row.expected))


def _characters(text: str, line: int, log: FindingLog) -> None:
    """What only text beyond ASCII can have; a row is noted once per kind and text."""
    if (broken := mojibake_in(text)) is not None:
        detail = f"{broken.group()!r} for {_decoded(broken)!r}"
        log.add_shown("mojibake", line, partial(_near, text, broken), detail)
    if "\ufffd" in text:
        log.add_shown("replacement_character", line, partial(shown, text))
    if (odd := _ODD.search(text)) is not None and not (broken and broken.start() <= odd.start() < broken.end()):
        log.add_shown("odd_characters", line, partial(_near, text, odd), named(odd.group()))


def _decoded(match: re.Match[str]) -> str | None:
    """What the characters are as UTF-8, or None where they more likely are themselves."""
    run = match.group()
    data = bytes(_BYTE.get(character, ord(character) & 0xFF) for character in run)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if len(text) > 1:
        return text
    before_a_mark = run[0] in "ÄÅ" and run[1] in _MARKS and not match.string[match.end() : match.end() + 1].isalpha()
    return text if _USUAL.fullmatch(text) and not before_a_mark else None


def _near(text: str, match: re.Match[str]) -> str:
    """Up to 30 characters on either side, masked before they are cut."""
    before, after = masked(text[: match.start()])[-30:], masked(text[match.end() :])[:30]
    return " ".join(f"{before}{match.group()}{after}".split())
