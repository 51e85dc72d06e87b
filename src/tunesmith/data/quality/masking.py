"""Excerpts of rows for messages and logs: short, on one line, without personal data and secrets."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.quality.hits import Hit, apart
from tunesmith.data.quality.personal import personal_hits
from tunesmith.data.quality.secrets import secret_hits

_NAMES = {
    "personal_email": "e-mail",
    "personal_phone": "telephone",
    "payment_card": "card",
    "bank_account": "account",
    "national_id": "identity number",
    "ip_address": "IP address",
    "api_key": "key",
    "access_token": "token",
    "private_key": "private key",
    "password": "password",
}
SENSITIVE = tuple(_NAMES)
"""Codes of findings about personal data and secrets."""


def sensitive_hits(text: str) -> list[Hit]:
    """Personal data and secrets in a text, none overlapping another."""
    return apart([*secret_hits(text), *personal_hits(text)])


def name_of(hit: Hit) -> str:
    """What stands in place of a hit, such as `[e-mail]`."""
    return f"[{_NAMES[hit.code]}]"


def mask(text: str, hits: Sequence[Hit]) -> str:
    """The text with the names of the hits in their places; `hits` as `sensitive_hits` gives them."""
    out, end = [], 0
    for hit in hits:
        out += [text[end : hit.start], name_of(hit)]
        end = hit.end
    return "".join([*out, text[end:]])


def masked(text: str) -> str:
    """The text with `[e-mail]`, `[key]` and so on in place of everything sensitive."""
    return mask(text, sensitive_hits(text))


def shown(text: str, width: int = 80) -> str:
    """At most `width` characters of a text on one line, masked before it is cut."""
    line = " ".join(masked(text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
