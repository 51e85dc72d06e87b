"""Personal data in a text: e-mail, telephone, card, account, identity number, IP address.

A number counts only where its form and, where it has one, its check digit is right; reserved names and addresses that
belong to nobody (example.com, private networks) do not count. Every pattern is tried only where a cheap test says that
it could be there, so clean text costs little.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from tunesmith.data.quality.check_digits import (
    brazilian_cpf,
    chinese_id,
    digits_of,
    dutch_bsn,
    french_nir,
    iban,
    italian_code,
    luhn,
    payment_card,
    spanish_id,
    verhoeff,
)
from tunesmith.data.quality.hits import Hit

_EMAIL = re.compile(r"(?<![\w.+'/:@-])[\w.+'-]{1,64}@(?:[\w-]+\.)+[A-Za-z]{2,24}(?![\w-]|@)")
_NOBODY = re.compile(r"@(?:[\w-]+\.)*(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)$", re.I)
_FILE_ENDINGS = {"png", "jpg", "jpeg", "gif", "svg", "webp", "js", "ts", "py", "css", "html", "json", "md", "txt"}

_SIX_DIGITS = re.compile(r"\d(?:[ ().\-/]{0,3}\d){5}")
_CARD = re.compile(
    r"(?<![\d.+-])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -]?)\d{6}\2\d{4,5}|\d{13,19})(?![\d-]|\.\d)"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b")

_INTERNATIONAL = re.compile(
    r"(?<![\w+])(?:\+|00)[1-9]\d{0,2}[ .\-/]?(?:\(\d{1,4}\)[ .\-/]?)?\d(?:[ .\-/]?\d){5,12}(?![\w])"
)
_AMERICAN = re.compile(
    r"(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d{2}\)[ -]?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}(?![\w-]|\.\d)"
)
_TRUNK = re.compile(
    r"(?<![\w.,+/-])(?:\(0[1-9]\d{0,3}\)|0[1-9]\d{0,3})[ \-/]\d{2,7}(?:[ \-]\d{2,4}){0,4}(?![\w/-]|[.,]\d)"
)
_SAID = re.compile(
    r"\b(?:tel(?:ephone)?|phone|mobile|cell(?:phone)?|call|fax|whatsapp|sms|telefon|handy|tél|téléphone|teléfono)\b"
    r"(?:[\s:#=.-]|\b(?:number|no|nr|is|was|at|me|us|him|her|on|my|under)\b){0,8}"
    r"(\+?\(?\d[\d ().\-/]{5,18}\d)(?![\w-])",
    re.I,
)
_DATE = re.compile(r"^\(?(?:\d{1,2}[ ./-]\d{1,2}[ ./-]\d{4}|\d{4}[ ./-]\d{1,2}[ ./-]\d{1,2})\b")

_LETTER_DIGITS = re.compile(r"[A-Z]\d\d")
_DOTTED = re.compile(r"\d\.\d{1,3}\.\d")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV4 = re.compile(r"(?<![\w.-])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_VERSION = re.compile(r"(?:\bv|version|release|build|section|chapter|clause|firmware|§|driver)\s*$", re.I)

_ITALIAN = re.compile(r"\b[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]\b")
_Test = Callable[[str], bool]
_IDENTITIES: tuple[tuple[re.Pattern[str], _Test], ...] = (
    # United States: social security number, without the ranges that are never given out
    (re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"), lambda text: True),
    # United Kingdom: national insurance number
    (
        re.compile(
            r"\b(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]( ?)\d{2}\1\d{2}\1\d{2}\1[A-D]\b"
        ),
        lambda text: True,
    ),
    (re.compile(r"(?<![\w>.-])(?:\d{8}|[XYZ]\d{7})-?[A-Z]\b"), spanish_id),
    (re.compile(r"(?<![\d.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)"), lambda text: brazilian_cpf(digits_of(text))),
    (re.compile(r"\b[12]( ?)\d{2}\1\d{2}\1(?:\d{2}|2[AB])\1\d{3}\1\d{3}\1\d{2}\b"), french_nir),
    (
        re.compile(r"\b[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]\b"),
        chinese_id,
    ),
    (re.compile(r"(?<![\w-])[2-9]\d{3} \d{4} \d{4}(?![\w-]| \d)"), lambda text: verhoeff(digits_of(text))),
    # Sweden: personal number
    (
        re.compile(r"(?<![\w-])(?:19|20)?\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[-+]\d{4}(?![\w-])"),
        lambda text: luhn(digits_of(text)[-10:]),
    ),
    (re.compile(r"(?<=BSN )\d{9}\b|(?<=BSN: )\d{9}\b"), dutch_bsn),
)  # fmt: skip


def personal_hits(text: str) -> list[Hit]:
    """Everything that looks like personal data; hits may overlap, the surer kind first."""
    hits: list[Hit] = []
    if _SIX_DIGITS.search(text):
        hits += _of("payment_card", _CARD, text, lambda found: payment_card(digits_of(found)))
        hits += _identities(text)
        hits += _phones(text)
    if _LETTER_DIGITS.search(text):
        hits += _accounts(text)
        hits += _of("national_id", _ITALIAN, text, italian_code)
    if "@" in text:
        hits += _of("personal_email", _EMAIL, text, _somebody)
    if _DOTTED.search(text):
        hits += _addresses(text, _IPV4)
    if _COLONS.search(text):
        hits += _addresses(text, _IPV6)
    order = ("payment_card", "bank_account", "national_id", "personal_email", "ip_address", "personal_phone")
    return sorted(hits, key=lambda hit: order.index(hit.code))


def _of(code: str, pattern: re.Pattern[str], text: str, test: _Test) -> Iterator[Hit]:
    for match in pattern.finditer(text):
        if test(match.group()):
            yield Hit(code, match.start(), match.end())


def _accounts(text: str) -> Iterator[Hit]:
    """IBANs; a match may run into a following word in capitals, so shorter readings are tried too."""
    for match in _IBAN.finditer(text):
        found = match.group()
        for end in range(len(found), 14, -1):
            if iban(found[:end]) and not found[end : end + 1].isalnum():
                yield Hit("bank_account", match.start(), match.start() + end)
                break


def _identities(text: str) -> Iterator[Hit]:
    for pattern, test in _IDENTITIES:
        yield from _of("national_id", pattern, text, test)


def _phones(text: str) -> Iterator[Hit]:
    for pattern, least, most in ((_INTERNATIONAL, 8, 15), (_AMERICAN, 10, 11), (_TRUNK, 9, 12)):
        for match in pattern.finditer(text):
            if least <= len(digits_of(match.group())) <= most and not _DATE.match(match.group()):
                yield Hit("personal_phone", match.start(), match.end())
    for match in _SAID.finditer(text):
        number = match.group(1)
        if 7 <= len(digits_of(number)) <= 15 and not _DATE.match(number):
            yield Hit("personal_phone", match.start(1), match.end(1))


def _somebody(address: str) -> bool:
    """Whether an e-mail address can be a person's: not reserved for examples, no file name, no repository."""
    local, _, domain = address.partition("@")
    ending = domain.rsplit(".", 1)[-1].lower()
    return not (_NOBODY.search(address) or ending in _FILE_ENDINGS or local == "git" or local.startswith("."))


def _addresses(text: str, pattern: re.Pattern[str]) -> Iterator[Hit]:
    for match in pattern.finditer(text):
        try:
            address = ipaddress.ip_address(match.group())
        except ValueError:
            continue
        if address.is_global and not _VERSION.search(text, max(0, match.start() - 12), match.start()):
            yield Hit("ip_address", match.start(), match.end())
