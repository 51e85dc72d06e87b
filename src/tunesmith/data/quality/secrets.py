"""Secrets in a text: keys of services by their known beginnings, tokens, private keys, passwords.

Examples out of documentation (AKIA…EXAMPLE, sk-xxxx…, your-key-here) do not count: they open nothing.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

from tunesmith.data.quality.hits import Hit

_LONG_WORD = re.compile(r"[A-Za-z0-9_+/=-]{20}")
_EDGE, _END = r"(?<![A-Za-z0-9_-])", r"(?![A-Za-z0-9_-])"
_KEYS = re.compile(
    _EDGE
    + r"(?:"
    + "|".join(
        (
            r"sk-(?:proj-|ant-(?:api\d\d-)?|svcacct-|or-v1-)?[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic, OpenRouter
            r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",  # AWS
            r"AIza[A-Za-z0-9_-]{35}",  # Google
            r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
            r"whsec_[A-Za-z0-9]{24,}",
            r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
            r"(?:SK|AC)[0-9a-f]{32}",  # Twilio
            r"key-[0-9a-f]{32}",  # Mailgun
            r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
            r"gsk_[A-Za-z0-9]{32,}",  # Groq
            r"r8_[A-Za-z0-9]{32,}",  # Replicate
            r"pypi-AgEI[A-Za-z0-9_-]{40,}",
            r"npm_[A-Za-z0-9]{36}",
            r"dop_v1_[0-9a-f]{64}",  # DigitalOcean
            r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",  # Shopify
            r"sq0(?:atp|csp)-[A-Za-z0-9_-]{22,}",  # Square
        )
    )
    + r")"
    + _END
)
_TOKENS = re.compile(
    _EDGE
    + r"(?:"
    + "|".join(
        (
            r"gh[pousr]_[A-Za-z0-9]{36,}",  # GitHub
            r"github_pat_[A-Za-z0-9_]{22,}",
            r"glpat-[A-Za-z0-9_-]{20,}",  # GitLab
            r"xox[abeoprs]-[A-Za-z0-9-]{10,}",  # Slack
            r"ya29\.[A-Za-z0-9_-]{20,}",  # Google OAuth
            r"EAA[A-Za-z0-9]{60,}",  # Meta
            r"\d{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram
        )
    )
    + r")"
    + _END
)
_JWT = re.compile(_EDGE + r"(eyJ[A-Za-z0-9_-]{8,})\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}" + _END)
_BEARER = re.compile(r"\bbearer\s+([A-Za-z0-9._~+/-]{20,}=*)", re.I)
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[\s\S]*?-----END [A-Z0-9 ]+-----)?")
_IN_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]*:([^\s/@\"'<>]{3,})@[\w.-]", re.I)
_ASSIGNED = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Za-z0-9]+[_-])*(password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|token)"
    r"[\"']?\s*(?:=|:|\bis\b)\s*[\"'`]?([^\s\"'`,;<>()]{8,})",
    re.I,
)
_NAMES = ("passw", "passphrase", "pwd", "secret", "key", "token")
_PLACEHOLDER = re.compile(
    r"example|x{4}|\*{3}|your|change.?me|placeholder|dummy|redacted|sample|\.{3}|[<>{}$%]|1234567|abcdefg|0{6}|none|null",
    re.I,
)
_WEAK = {"password", "pass", "pwd", "secret", "user", "username", "token", "pw", "root", "admin", "guest", "hunter2"}


def secret_hits(text: str) -> list[Hit]:
    """Everything that looks like a secret; hits may overlap, the surer kind first."""
    hits: list[Hit] = []
    if "-----BEGIN" in text:
        hits += [Hit("private_key", m.start(), m.end()) for m in _PRIVATE_KEY.finditer(text)]
    if _LONG_WORD.search(text):
        hits += [Hit("access_token", m.start(), m.end()) for m in _JWT.finditer(text) if _is_header(m.group(1))]
        hits += [Hit("access_token", m.start(), m.end()) for m in _TOKENS.finditer(text) if real(m.group())]
        hits += [Hit("api_key", m.start(), m.end()) for m in _KEYS.finditer(text) if real(m.group())]
        hits += [Hit("access_token", m.start(1), m.end(1)) for m in _BEARER.finditer(text) if _random(m.group(1))]
    if "://" in text:
        hits += [Hit("password", m.start(1), m.end(1)) for m in _IN_URL.finditer(text) if _chosen(m.group(1))]
    lowered = text.lower()
    if any(word in lowered for word in _NAMES):
        hits += _assigned(text)
    return hits


def real(key: str) -> bool:
    """Whether a key of the right form can open something: no placeholder, and not a few characters repeated."""
    return not _PLACEHOLDER.search(key) and len(set(key)) >= 10


def _random(value: str) -> bool:
    return real(value) and any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def _chosen(password: str) -> bool:
    return not _PLACEHOLDER.search(password) and password.lower() not in _WEAK


def _assigned(text: str) -> Iterator[Hit]:
    """`password = …` and the like, where the value is neither a word nor a placeholder."""
    for match in _ASSIGNED.finditer(text):
        name, value = match.group(1).lower(), match.group(2).rstrip(".!?")
        kinds = sum(map(bool, (re.search("[a-z]", value), re.search("[A-Z]", value), re.search(r"\d", value),
                               re.search(r"[^\w]", value))))  # fmt: skip
        good = _chosen(value) and kinds >= 2 and any(c.isdigit() or not c.isalnum() for c in value)
        if not good or "://" in value or len(value) < 8:
            continue
        if name.startswith("pass") or name == "pwd":
            if kinds >= 3:
                yield Hit("password", match.start(2), match.start(2) + len(value))
        elif len(value) >= 16 and _random(value):
            code = "access_token" if name == "token" else "api_key"
            yield Hit(code, match.start(2), match.start(2) + len(value))


def _is_header(segment: str) -> bool:
    """Whether the first part of a JSON web token is an object that names its algorithm."""
    try:
        header = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except ValueError:
        return False
    return isinstance(header, dict) and "alg" in header
