"""Reading from a hosted API with a user's own key: GET requests only, over HTTPS, and nothing that costs anything."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from tunesmith.errors import EngineError, RecipeError, ResourceError

OPENAI = "https://api.openai.com/v1"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
_TRIES = 5
_LONGEST_WAIT = 60.0
_PIECE = 1 << 20
_AGAIN_LATER = "run the same command again: it goes on where it stopped"


class GoneError(EngineError):
    """What was asked for is not offered any more, or not to this key: 403, 404 or 410."""


@dataclass(frozen=True, slots=True)
class Asker:
    """An API and the key to it, which is in no error, log or file.

    key: sent as a Bearer. headers: more of them (organisation, project). sleep: waits between tries, in seconds.
    """

    url: str
    key: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 120.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise RecipeError(
                "a key is sent over https only", where=self.url, expected="an address that begins with https://"
            )

    def ask(self, path: str, **query: Any) -> Any:
        """The JSON at a path. Raises `GoneError`, `EngineError`, `ResourceError`."""
        with self.open(path, **query) as answer:
            try:
                return json.load(answer)
            except (ValueError, OSError, http.client.HTTPException) as error:
                raise EngineError("the answer is no JSON", where=self._shown(path)) from error

    def pages(self, path: str, *, limit: int = 100, **query: Any) -> Iterator[Any]:
        """Every object of a list, over all its pages. Raises as `ask`."""
        after: str | None = None
        while True:
            page = self.ask(path, limit=limit, **query, **({"after": after} if after else {}))
            items = page.get("data") if isinstance(page, dict) else None
            if not isinstance(items, list):
                raise EngineError("the answer is no list", where=self._shown(path))
            yield from items
            last = items[-1].get("id") if items and isinstance(items[-1], dict) else None
            if not page.get("has_more") or last is None or last == after:
                return
            after = last

    @contextmanager
    def open(self, path: str, **query: Any) -> Iterator[http.client.HTTPResponse]:
        """The answer to a GET, to be read. Tries again where that can help."""
        for tried in range(1, _TRIES + 1):
            try:
                answer = self._open(path, query)
            except urllib.error.HTTPError as error:
                with error:
                    told = _message(error)
                if error.code in _AGAIN and tried < _TRIES:
                    self.sleep(_wait(error.headers.get("retry-after"), tried))
                    continue
                raise self._refusal(path, error.code, told) from None
            except (OSError, http.client.HTTPException) as error:
                if tried < _TRIES:
                    self.sleep(_wait(None, tried))
                    continue
                raise ResourceError(
                    "the service cannot be reached", where=self._shown(path), fix=_AGAIN_LATER
                ) from error
            with answer:
                yield answer
            return

    def pieces(self, path: str) -> Iterator[bytes]:
        """The bytes at a path. Raises as `ask`, also in the middle."""
        with self.open(path) as answer:
            while True:
                try:
                    piece = answer.read(_PIECE)
                except (OSError, http.client.HTTPException) as error:
                    raise ResourceError("it ended in the middle", where=self._shown(path), fix=_AGAIN_LATER) from error
                if not piece:
                    if answer.length:  # so many bytes that were announced never came
                        raise ResourceError("it ended in the middle", where=self._shown(path), fix=_AGAIN_LATER)
                    return
                yield piece

    def _open(self, path: str, query: Mapping[str, Any]) -> http.client.HTTPResponse:
        address = self.url.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        headers = {**self.headers, "Authorization": f"Bearer {self.key}", "User-Agent": "tunesmith"}
        request = urllib.request.Request(address, headers=headers, method="GET")
        answer: http.client.HTTPResponse = _OPENER.open(request, timeout=self.timeout)
        return answer

    def _refusal(self, path: str, status: int, told: str) -> EngineError:
        where = self._shown(path)
        if status == 401:
            return EngineError(
                f"the key is not accepted: {told}", where=where, fix="set OPENAI_API_KEY to a key of the account"
            )
        if status in (403, 404, 410):
            return GoneError(f"{status}: {told}", where=where)
        return EngineError(f"{status}: {told}", where=where, fix=_AGAIN_LATER)

    def _shown(self, path: str) -> str:
        return f"GET {self.url.rstrip('/')}{path}"


def part(id: str) -> str:
    """An id within a path."""
    return quote(id, safe=":")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key is never carried to another address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _message(error: urllib.error.HTTPError) -> str:
    """What the service says, without its HTML."""
    try:
        told = json.loads(error.read(100_000))["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return str(error.reason)
    return str(told)[:300]


def _wait(asked: str | None, tried: int) -> float:
    """Seconds until the next try: what the service asks for, else more each time."""
    if asked is not None and asked.replace(".", "", 1).isdigit():
        return min(float(asked), _LONGEST_WAIT)
    return float(min(0.5 * 2.0**tried, 8.0) * random.uniform(0.75, 1.0))
