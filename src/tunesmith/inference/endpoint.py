"""Asking a chat model behind any OpenAI-compatible endpoint, within a budget that is checked before every request.

One POST per question through the standard library: proxies and certificates are those of the system, and nothing has to
be installed for it. Failures that pass (a busy server, a lost connection) are tried again after a growing, jittered
pause, or after as long as the server asks for (`Retry-After`, in seconds or as a date).
"""

from __future__ import annotations

import http.client
import json
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from tunesmith.errors import EngineError, RecipeError

Turns = Sequence[Mapping[str, str]]
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_PERHAPS_CHARGED = frozenset({408, 504})
"""Of those, the ones that say it took too long: the answer may have been computed."""
_NOT_OURS = frozenset({401, 402, 403, 404})
"""Answers after which no other question will fare better."""
_LONGEST_PAUSE = 60.0
_PIECE = 1 << 16
_SHOWN = 300
"""Characters of what an endpoint says that are shown."""
_PER_MESSAGE = 16
"""Tokens that a message costs beside its content, at most; a token of content is at least one byte."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. Tokens are those the endpoint counted; `counted` is False where it did not say.

    `lost`: input and output tokens of attempts that got no answer and may have been charged all the same. `model` is
    the name the answer bears; `fingerprint` the endpoint's mark of what runs it (`system_fingerprint`), if it has one.
    """

    text: str
    finish_reason: str
    response_id: str
    model: str
    input_tokens: int
    output_tokens: int
    counted: bool
    lost: tuple[int, int] = (0, 0)
    fingerprint: str = ""


class AskError(Exception):
    """A question that got no answer. `lost`: tokens in and out that its attempts may have been charged all the same."""

    lost: tuple[int, int] = (0, 0)


class RefusedError(AskError):
    """This question cannot be answered (a content filter, a prompt that is too long); others may be. `told`: why."""

    def __init__(self, told: str, status: int = 0) -> None:
        self.told, self.status = told, status
        super().__init__(f"{status}: {told}" if status else told)


class OverBudgetError(AskError):
    """The budget does not cover another request."""


class FailedError(AskError):
    """Nothing can be asked here: no such model, no permission, no server after all attempts; `told` says which."""

    def __init__(self, told: EngineError) -> None:
        self.told = told
        super().__init__(str(told))


class UnreadableError(FailedError):
    """What came back is no chat completion: something else answers at this address, or a server that is not well."""


class SilentError(FailedError):
    """No answer after all attempts, which another question may still get: the server was busy, or lost too often."""


@dataclass(slots=True)
class Budget:
    """Ceilings of tokens and money, over all requests ever made for one output.

    A request is counted before it is sent, with the most it can cost, and corrected when its answer is there: so what
    is spent never exceeds a ceiling. One that was lost on the way may have been charged: it stays counted in full.
    """

    max_tokens: int | None = None
    max_money: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    tokens: int = 0
    money: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def price(self, input_tokens: int, output_tokens: int) -> float:
        """Money for so many tokens; prices are per million."""
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6

    def reserve(self, input_tokens: int, output_tokens: int) -> None:
        """Count a request in advance. Raises `OverBudgetError` where a ceiling could be exceeded."""
        with self._lock:
            tokens = self.tokens + input_tokens + output_tokens
            money = self.money + self.price(input_tokens, output_tokens)
            if self.max_tokens is not None and tokens > self.max_tokens:
                raise OverBudgetError(f"{self.max_tokens:,} tokens")
            if self.max_money is not None and money > self.max_money:
                raise OverBudgetError(f"{self.max_money:g} of money")
            self.tokens, self.money = tokens, money

    def correct(self, reserved: tuple[int, int], used: tuple[int, int]) -> None:
        """Replace what was counted in advance by what was used."""
        with self._lock:
            self.tokens += sum(used) - sum(reserved)
            self.money += self.price(*used) - self.price(*reserved)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, and how.

    url: up to and including the version, such as `http://127.0.0.1:8000/v1`. key: sent as bearer token, never shown.
    timeout: seconds for all of one answer. attempts: of one question. sleep: waits so many seconds. retried: hears why
    an attempt failed that is followed by another one, also from several threads. set_by: the settings that errors name.
    limit_field: under which name the most tokens of an answer are asked for; newer models take another one.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    attempts: int = 6
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    retried: Callable[[str], None] = field(default=lambda why: None, repr=False)
    set_by: str = "--endpoint, --model"
    limit_field: str = "max_tokens"

    @property
    def host(self) -> str:
        """The server's name, for provenance."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    def check(self) -> None:
        """Raise `RecipeError` for an address or key that cannot be sent, or a key that would be sent in the clear."""
        parts = urlsplit(self.url)
        if parts.username or parts.password:
            raise RecipeError(
                f"the address of {self.host} holds a user name or password",
                where=self.set_by,
                expected="an address alone: it is written into the run and its report",
                fix="give a key by its environment variable",
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", self.url):
            raise RecipeError(
                f"{self.url!r} is no address of an endpoint",
                where=self.set_by,
                expected="such as https://api.example.com/v1 or http://127.0.0.1:8000/v1",
            )
        if self.key and not re.fullmatch(r"[!-~]+", self.key):
            raise RecipeError(
                "the key holds characters that cannot be sent, such as a line break or a space",
                where=self.set_by,
                expected="ASCII letters, digits and signs",
                fix="set the environment variable anew",
            )
        if self.key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise RecipeError(
                "the key would be sent unencrypted", where=self.set_by, expected="https://", fix="use https, or no key"
            )

    def ask(self, turns: Turns, budget: Budget, *, max_tokens: int, options: Mapping[str, Any]) -> Reply:
        """The answer to one conversation.

        options: further fields of the request, such as temperature.

        Raises
        ------
        RefusedError: for this question alone. OverBudgetError: before the request that could exceed the budget.
        SilentError: no answer after all attempts. UnreadableError: no chat completion. FailedError: for all questions.
        """
        asked_for = {"model": self.model, "messages": list(turns), self.limit_field: max_tokens, **options}
        body = json.dumps(asked_for).encode()
        bound = token_bound(turns, options)
        lost = 0
        try:
            asked: float | None = None
            why = ""
            for attempt in range(self.attempts):
                if attempt:
                    self.retried(why)
                    self.sleep(_pause(attempt, asked))
                budget.reserve(bound, max_tokens)
                try:
                    answer = self._post(body)
                except urllib.error.HTTPError as error:
                    if error.code in _PERHAPS_CHARGED:
                        lost += 1
                    else:
                        budget.correct((bound, max_tokens), (0, 0))
                    self._raise_lasting(error)
                    asked, why = _retry_after(error), f"status {error.code}"
                    continue
                except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                    if _never_sent(error):
                        budget.correct((bound, max_tokens), (0, 0))
                    else:  # it may have been computed and charged: it stays counted
                        lost += 1
                    asked, why = None, str(error)
                    continue
                lost += 1  # until it is known to be an answer
                reply = self._read(answer, bound, max_tokens)
                lost -= 1
                reply = replace(reply, lost=(lost * bound, lost * max_tokens))
                budget.correct((bound, max_tokens), (reply.input_tokens, reply.output_tokens))
                return reply
            what = f"the endpoint did not answer in {self.attempts} attempts: {why}"
            raise SilentError(EngineError(what, where=self.host, fix="repeat it later"))
        except AskError as error:
            error.lost = (lost * bound, lost * max_tokens)
            raise

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "tunesmith"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, headers, method="POST")
        # A redirection would take the key along to another server.
        opener = urllib.request.build_opener(_NoRedirect)
        until = time.monotonic() + self.timeout
        with opener.open(request, timeout=self.timeout) as response:
            return b"".join(_pieces(response, until))

    def _raise_lasting(self, error: urllib.error.HTTPError) -> None:
        """Raise for an answer that trying again will not change."""
        if error.code in _PASSING:
            return
        said = self._without_key(_message(error))
        if error.code in _NOT_OURS or 300 <= error.code < 400:
            raise self._failed(
                f"the endpoint refuses ({error.code}): {said}", f"check {self.set_by} and the key"
            ) from error
        raise RefusedError(said, error.code) from error

    def _read(self, answer: bytes, bound: int, max_tokens: int) -> Reply:
        try:
            found = json.loads(answer)
            choice = found["choices"][0]
            text = _text_of(choice["message"])
            usage = found.get("usage") or {}
            counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
            finish_reason = str(choice.get("finish_reason") or "")
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
            said = self._without_key(_said(answer.decode("utf-8", "replace")))
            told = EngineError(
                "the endpoint answers something else than chat completions" + (f": {said}" if said else ""),
                where=self.host,
                fix=f"check {self.set_by}",
            )
            raise UnreadableError(told) from error
        used = [number for number in counts if isinstance(number, int) and number >= 0]
        counted = len(used) == 2
        return Reply(
            text=_whole(text),
            finish_reason=_whole(finish_reason),
            response_id=_whole(str(found.get("id") or "")),
            model=_whole(str(found.get("model") or self.model)),
            input_tokens=used[0] if counted else bound,
            output_tokens=used[1] if counted else max_tokens,
            counted=counted,
            fingerprint=_whole(str(found.get("system_fingerprint") or "")),
        )

    def _without_key(self, said: str) -> str:
        """What a server says, where it repeats the key it was sent."""
        return said.replace(self.key, "(the key)") if self.key else said

    def _failed(self, what: str, fix: str) -> FailedError:
        return FailedError(EngineError(what, where=self.host, fix=fix))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def token_bound(turns: Turns, options: Mapping[str, Any] | None = None) -> int:
    """Tokens that a request has at most, whatever the tokenizer: a token is at least one byte.

    A form that the answer is held to (`response_format` of `options`) may be read, and charged, as part of the prompt.
    """
    form = (options or {}).get("response_format")
    held = len(json.dumps(form)) if form is not None else 0
    return sum(len(turn["content"].encode()) + _PER_MESSAGE for turn in turns) + _PER_MESSAGE + held


def _pause(attempt: int, asked: float | None) -> float:
    """Seconds before the next attempt: what the server asked for, else up to 1, 2, 4, … at random ("full jitter")."""
    if asked is not None:
        return min(_LONGEST_PAUSE, asked)
    return random.uniform(0.1, min(_LONGEST_PAUSE, 2.0 ** (attempt - 1)))


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the server asks to wait, told as such or by a date (RFC 9110); None where it does not."""
    text = (error.headers.get("Retry-After") or "").strip()
    if text.isascii() and text.replace(".", "", 1).isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _pieces(response: http.client.HTTPResponse, until: float) -> Iterator[bytes]:
    """What is sent, as it comes. Raises `TimeoutError` for an answer that drips in past `until`."""
    while piece := response.read1(_PIECE):
        yield piece
        if time.monotonic() > until:
            raise TimeoutError("timed out while the answer was sent")


def _text_of(message: Mapping[str, Any]) -> str:
    """What a message says: a text, its text parts, or why the model refuses. Raises `TypeError` for anything else."""
    content = message.get("content")
    if content is None:
        content = message.get("refusal") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise TypeError("content is no text")
    return content


def _message(error: urllib.error.HTTPError) -> str:
    """What the endpoint says about its refusal, shortened."""
    try:
        text = error.read(4_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    return _said(text) or str(error.reason)


def _said(text: str) -> str:
    """The message in an error's body, or the body itself, shortened."""
    try:
        found = json.loads(text)
        inner = found.get("error", found) if isinstance(found, dict) else found
        text = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except (ValueError, RecursionError):
        pass
    return _whole(" ".join(text.split())[:_SHOWN])


def _whole(text: str) -> str:
    """A text that has a UTF-8 form: half of a surrogate pair, which JSON can hold, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _never_sent(error: Exception) -> bool:
    """Whether no connection was made, so that nothing can have been charged."""
    return isinstance(getattr(error, "reason", error), ConnectionRefusedError)
