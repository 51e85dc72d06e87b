"""Who may ask for what: keys and their scopes, and pages of other sites that may ask for nothing.

On loopback no key is looked at, unless the settings require one: every client sends some text as a key, and who can
reach the port is on this machine. What a browser would send there for somebody else is refused instead, by the name in
`Host` (an outside name that resolves to 127.0.0.1) and by `Origin`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tunesmith.service.entrance import ROOTS, visit_of
from tunesmith.service.errors import ApiError
from tunesmith.service.keys import allows, check_key
from tunesmith.service.settings import ServeSettings

if TYPE_CHECKING:
    from tunesmith.service.store.interface import Store

ScopeName = Literal["read", "infer", "train", "admin"]

OPEN = frozenset({"/healthz", "/readyz"})
"""Answered without a key: they say whether the server lives, and nothing else."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})

_ASKING = re.compile(
    r"/(deployments/[^/]+/)?(chat/completions|completions|responses(/input_tokens)?|embeddings|moderations)"
)
_INFER = re.compile(r"/(batches|evals|chat/completions|responses)(/.*)?")
_ADMIN = re.compile(r"/fine_tuning/checkpoints/.+/permissions(/.*)?|/files/import|/subscriptions/.*", re.IGNORECASE)


def needed_scope(method: str, path: str) -> ScopeName:
    """What a key must be allowed for a request: `read` to look, `infer` to ask models (batches and evals too), `train`
    to upload, tune and delete, `admin` for permissions, deployments and imports from other addresses.
    """
    if method in ("GET", "HEAD", "OPTIONS"):
        return "read"
    below = _below_root(path)
    if _ADMIN.fullmatch(below):
        return "admin"
    return "infer" if asks_a_model(method, path) or _INFER.fullmatch(below) else "train"


def asks_a_model(method: str, path: str) -> bool:
    """Whether a model answers the request itself."""
    return method == "POST" and _ASKING.fullmatch(_below_root(path)) is not None


def _below_root(path: str) -> str:
    root = next((root for root in ROOTS if path.startswith(f"{root}/")), "")
    return path[len(root) :].rstrip("/")


class Strangers:
    """Refuses what a browser sends for another site: there is no CORS here."""

    def __init__(self, app: ASGIApp, *, only_local: bool) -> None:
        self.app, self.only_local = app, only_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            if self.only_local and _name_of(host) not in LOOPBACK_HOSTS:
                raise ApiError(
                    403,
                    "This server answers to 127.0.0.1 and localhost only; the request names another host.",
                    code="host_not_allowed",
                )
            origin = headers.get("origin")
            foreign = origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")
            # Images, scripts and links of other sites come without an origin.
            if foreign or headers.get("sec-fetch-site", "").lower() in ("cross-site", "same-site"):
                raise ApiError(403, "Requests from pages of other sites are not answered.", code="origin_not_allowed")
        await self.app(scope, receive, send)


def _name_of(host: str) -> str:
    """`localhost` of `localhost:8000`."""
    name, _, port = host.rpartition(":")
    return name.lower() if name and port.isdecimal() else host.lower()


class Keys:
    """Looks at the key of every request where keys are required, and leaves its id in the visit."""

    def __init__(self, app: ASGIApp, *, settings: ServeSettings, store: Store) -> None:
        self.app, self.store = app, store
        self.required = settings.keys_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.required and scope["path"] not in OPEN:
            await self._check(scope)
        await self.app(scope, receive, send)

    async def _check(self, scope: Scope) -> None:
        given = _given(Headers(scope=scope))
        if given is None:
            raise ApiError(
                401,
                "You didn't provide an API key. Send it in the header 'Authorization: Bearer KEY' (or 'api-key: KEY'); "
                "whoever runs this server makes one with `tunesmith keys create`.",
            )
        key = await run_in_threadpool(check_key, self.store, given)
        visit = visit_of(scope)
        visit.key_id = key.id
        wanted = needed_scope(scope["method"], scope["path"])
        if not allows(key, wanted):
            raise ApiError(
                403,
                f"You have insufficient permissions for this operation. Missing scope: {wanted}; "
                f"this key has {', '.join(key.scopes) or 'none'}.",
                code="insufficient_permissions",
            )


def _given(headers: Headers) -> str | None:
    """The secret of a request: as OpenAI's clients send it, or as Azure's."""
    kind, _, secret = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and secret.strip():
        return secret.strip()
    return headers.get("api-key", "").strip() or None
