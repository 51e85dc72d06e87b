"""Names of the service's objects. A name never becomes a path: files on the disk are named after their content or after
names that were looked up in the store first.
"""

from __future__ import annotations

import re
import secrets
import string
from typing import Literal

Flavour = Literal["openai", "azure"]
_ALPHABET = string.ascii_letters + string.digits
_SUFFIX = re.compile(r"[^a-z0-9-]+")


def new_id(prefix: str, *, separator: str = "-", length: int = 24) -> str:
    """`file-…`, `ftjob-…`: letters and digits from the system's randomness."""
    return prefix + separator + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def azure_id(prefix: str) -> str:
    """As Azure names things: 32 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(16)}"


def tuned_name(base: str, organization: str, suffix: str | None, unique: str) -> str:
    """OpenAI's name of a tuned model: `ft:<base>:<organization>:<suffix or nothing>:<8 characters>`."""
    return f"ft:{base}:{organization}:{cleaned_suffix(suffix)}:{unique}"


def azure_tuned_name(base: str, suffix: str | None, unique: str) -> str:
    """Azure's: `<base>.ft-<32 hex digits>[-suffix]`."""
    cleaned = cleaned_suffix(suffix)
    return f"{base}.ft-{unique}" + (f"-{cleaned}" if cleaned else "")


def checkpoint_name(tuned: str, step: int) -> str:
    """Name under which the model of an earlier step answers; `tuned` has characters of its own for each checkpoint."""
    return f"{tuned}:ckpt-step-{step}"


def cleaned_suffix(suffix: str | None) -> str:
    """A suffix as it stands in a model's name: small letters, digits and hyphens."""
    return _SUFFIX.sub("-", (suffix or "").lower()).strip("-")
