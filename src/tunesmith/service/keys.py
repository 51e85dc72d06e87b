"""API keys: made once, kept as a hash, allowed for some things, and revoked for good.

`admin` is allowed everything. `train` (upload, tune, delete) includes `read`, for who starts a job has to see it.
`infer` (ask models) and `read` include nothing else: a key in a program that only asks shows nobody the training data.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

from tunesmith.service.errors import ApiError
from tunesmith.service.ids import new_id
from tunesmith.service.store.interface import Store
from tunesmith.service.store.nouns import Key

KeyScope = Literal["read", "infer", "train", "admin"]
SCOPES: tuple[str, ...] = get_args(KeyScope)
USUAL: tuple[str, ...] = ("read", "infer", "train")
"""Of a key that is made without naming any."""

_INCLUDES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "read": frozenset({"read"}),
        "infer": frozenset({"infer"}),
        "train": frozenset({"train", "read"}),
        "admin": frozenset(SCOPES),
    }
)
_LETTERS = 43
"""Of a secret: 256 bits."""
_LONGEST = 200


def create_key(
    store: Store, name: str, scopes: Sequence[str] = USUAL, *, expires_at: int | None = None, now: int | None = None
) -> tuple[Key, str]:
    """A new key and its secret, which is kept nowhere. Raises `ValueError` for a scope that does not exist."""
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise ValueError(f"there is no scope {', '.join(unknown)}; there are {', '.join(SCOPES)}")
    if not scopes:
        raise ValueError("a key needs a scope")
    secret = new_id("sk-ts", length=_LETTERS)
    key = Key(
        id=new_id("key", separator="_", length=16),
        created_at=int(time.time()) if now is None else now,
        name=name,
        digest=_digest(secret),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        expires_at=expires_at,
    )
    store.add(key)
    return key, secret


def check_key(store: Store, secret: str, now: int | None = None) -> Key:
    """The key of a secret (`Bearer ` before it or not). Raises `ApiError` 401 where there is none, or none any more.

    The secret is never compared: it is hashed and its hash is looked up, so the time taken says nothing about it.
    """
    given = secret.strip()
    if given[:7].lower() == "bearer ":
        given = given[7:].strip()
    digest = _digest(given[:_LONGEST])
    found = store.all(Key, {"digest": digest})
    if not found or not hmac.compare_digest(found[0].digest, digest):
        raise _refused(f"Incorrect API key provided: {_shown(given)}.")
    key = found[0]
    if key.revoked_at is not None:
        raise _refused(f"The API key {_shown(given)} was revoked.")
    if key.expires_at is not None and key.expires_at <= (time.time() if now is None else now):
        raise _refused(f"The API key {_shown(given)} has expired.")
    return key


def allows(key: Key, scope: str) -> bool:
    """Whether a key may be used for what needs `scope`."""
    return any(scope in _INCLUDES.get(has, frozenset()) for has in key.scopes)


def revoke_key(store: Store, id: str, now: int | None = None) -> Key | None:
    """End a key for good; None where there is none. A key that was revoked before keeps its time."""
    key = store.get(Key, id)
    if key is None or key.revoked_at is not None:
        return key
    return store.update(Key, id, revoked_at=int(time.time()) if now is None else now)


def list_keys(store: Store) -> tuple[Key, ...]:
    """All of them, oldest first, those that were revoked included."""
    return store.all(Key)


def _digest(secret: str) -> str:
    # A random secret of 256 bits needs no slow hash: nobody can guess it.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _shown(secret: str) -> str:
    """Enough of a secret to recognise it by, as OpenAI shows it."""
    plain = "".join(c for c in secret if c.isprintable() and c.isascii())
    return f"{plain[:6]}***{plain[-4:]}" if len(plain) >= 20 else "***"


def _refused(message: str) -> ApiError:
    fix = "Whoever runs this server makes keys with `tunesmith keys create`."
    return ApiError(401, f"{message} {fix}", code="invalid_api_key")
