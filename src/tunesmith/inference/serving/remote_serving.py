"""Passing requests on to an OpenAI-compatible endpoint, and its stream back.

Conversations go to `/chat/completions`, texts and token ids to `/completions`. Each request has a thread that reads the
answer as it is sent; proxies and certificates are those of the system. What an endpoint has no words for (a Lark
grammar, scores of the prompt) is refused before anything is sent. Calls of tools come back as text, one
`<tool_call>{"name": …, "arguments": …}</tool_call>` each, which is how `text.answers` reads them.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.inference.endpoint import Endpoint
from tunesmith.inference.response_format import response_format, unwrapped
from tunesmith.inference.serving.types import (
    Ask,
    Finish,
    Loaded,
    ModelRef,
    OverloadedError,
    Piece,
    TokenScore,
    TooLongError,
    Usage,
)
from tunesmith.tasks.types import AnswerForm

_CONTEXT = 1 << 20
"""Of an endpoint it is not known; it refuses by itself what is too long."""
_SECONDS = 600.0
_UNNAMED = -1
"""Endpoints tell tokens by their text, not by their number."""
_SHOWN = 500

Item = Piece | Usage | Exception


@dataclass(slots=True)
class _Call:
    """A call of a tool as its parts arrive."""

    name: str = ""
    arguments: str = ""

    @property
    def text(self) -> str:
        try:
            arguments = json.loads(self.arguments or "{}")
        except ValueError:
            arguments = self.arguments
        return f"<tool_call>{json.dumps({'name': self.name, 'arguments': arguments}, ensure_ascii=False)}</tool_call>"


@dataclass(slots=True)
class _Choice:
    """An answer as it arrives. `wrapped`: the form for which it comes within an object, and is held back until it is
    whole."""

    wrapped: AnswerForm | None = None
    held: str = ""
    calls: dict[int, _Call] = field(default_factory=dict)
    ended: bool = False


class RemoteServing:
    """Implements `serving.types.ServingEngine` with endpoints: `ModelRef.base` is the model's name at `ModelRef.url`,
    and the key is in the environment variable `ModelRef.key_variable`.
    """

    def __init__(self) -> None:
        self._running, self._asked, self._failed, self._answered = 0, 0, 0, 0
        self._ending = False

    async def load(self, ref: ModelRef) -> Loaded:
        endpoint_of(ref)
        return Loaded(ref, _CONTEXT, None)

    async def submit(self, ask: Ask) -> AsyncIterator[Piece | Usage]:
        if self._ending:
            raise OverloadedError(5)
        endpoint, path, body = endpoint_of(ask.model), *_body(ask, self.name(ask.model))
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Item]()
        gone = threading.Event()

        def put(item: Item) -> None:
            try:
                if not gone.is_set():
                    loop.call_soon_threadsafe(items.put_nowait, item)
            except RuntimeError:  # that event loop has ended, and with it who listened
                gone.set()

        def read() -> None:
            try:
                for item in _asked(endpoint, path, body, ask.decoding.form, gone):
                    put(item)
            except (EngineError, OverloadedError, TooLongError) as error:
                put(error)

        self._running += 1
        self._asked += 1
        threading.Thread(target=read, name="remote answer", daemon=True).start()
        try:
            left = True
            while left:
                item = await items.get()
                if isinstance(item, Exception):
                    self._failed += 1
                    raise item
                left = isinstance(item, Piece)
                if isinstance(item, Usage):
                    self._answered += item.answer
                yield item
        finally:
            self._running -= 1
            gone.set()

    def name(self, ref: ModelRef) -> str:
        """What the endpoint calls a model."""
        return ref.base

    def forget(self, ref: ModelRef) -> None:
        """Nothing of it is here."""

    def state(self) -> Mapping[str, float]:
        return {
            "running": float(self._running),
            "requests": float(self._asked),
            "requests_failed": float(self._failed),
            "answer_tokens": float(self._answered),
        }

    async def drain(self, seconds: float) -> None:
        self._ending = True
        until = asyncio.get_running_loop().time() + seconds
        while self._running and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)


def endpoint_of(ref: ModelRef) -> Endpoint:
    """Where to ask. Raises `EngineError` where the model does not say, `RecipeError` for an address or key that cannot
    be sent."""
    if not ref.url:
        raise EngineError("it is not known where this model is served", where=ref.base, expected="its address (url)")
    key = None
    if ref.key_variable:
        key = os.environ.get(ref.key_variable)
        if not key:
            raise EngineError(
                f"the environment variable {ref.key_variable} with the endpoint's key is not set", where=ref.base
            )
    endpoint = Endpoint(ref.url, ref.base, key, timeout=_SECONDS, set_by="the model's address")
    endpoint.check()
    return endpoint


def _body(ask: Ask, model: str) -> tuple[str, dict[str, Any]]:
    """Path and body of a request. Raises `EngineError` for what cannot be asked of an endpoint."""
    one = ask.decoding
    if one.grammar is not None:
        raise EngineError("an endpoint cannot hold an answer to a Lark grammar", fix="use a JSON schema")
    if ask.echo_scores:
        raise EngineError("an endpoint does not tell log-probabilities of the prompt", fix="ask without echo")
    body: dict[str, Any] = {
        "model": model, "stream": True, "stream_options": {"include_usage": True}, "n": ask.count,
        "temperature": one.temperature, "top_p": one.top_p,
    }  # fmt: skip
    optional = {
        "presence_penalty": one.presence_penalty, "frequency_penalty": one.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in one.logit_bias.items()}, "seed": one.seed,
        "stop": list(one.stop), "max_tokens": ask.max_new_tokens,
    }  # fmt: skip
    body |= {name: value for name, value in optional.items() if value not in (None, 0.0, {}, [])}
    if ask.prompt and isinstance(ask.prompt, tuple) and isinstance(ask.prompt[0], Message):
        turns: tuple[Message, ...] = ask.prompt
        body["messages"] = [_turn(turn) for turn in turns]
        offered = next((turn.tools for turn in turns if turn.tools is not None), None)
        if offered is not None:
            body["tools"] = [json.loads(text) for text in offered.definitions]
            if offered.parallel is not None:
                body["parallel_tool_calls"] = offered.parallel
        if one.form is not None:
            body["response_format"] = response_format(one.form)
        if one.top is not None:
            body |= {"logprobs": True, "top_logprobs": one.top}
        return "chat/completions", body
    if one.form is not None:
        raise EngineError("an endpoint holds only answers of a conversation to a form", fix="ask with messages")
    body["prompt"] = ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt)
    if one.top is not None:
        body["logprobs"] = one.top
    return "completions", body


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return turn


def _asked(
    endpoint: Endpoint, path: str, body: Mapping[str, Any], form: AnswerForm | None, gone: threading.Event
) -> Iterator[Item]:
    """The items of one request. Raises `OverloadedError`, `TooLongError` or `EngineError`."""
    try:
        with opened(endpoint, path, body, endpoint.timeout) as response:
            yield from _items(response, body["n"], form, gone)
    except urllib.error.HTTPError as error:
        raise _refusal(error, endpoint) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        why = getattr(error, "reason", error)
        raise EngineError(f"the endpoint does not answer: {why}", where=endpoint.host, fix="ask again later") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise EngineError(
            "the endpoint answers something else than a stream of completions", where=endpoint.host
        ) from error


def opened(endpoint: Endpoint, path: str, body: Mapping[str, Any] | None, seconds: float) -> Any:
    """The response to a POST of `body`, or without one to a GET. Raises what `urllib.request` raises."""
    headers = {"Content-Type": "application/json", "User-Agent": "tunesmith"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{endpoint.url.rstrip('/')}/{path}", data, headers)
    return urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would take the key along to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _items(lines: Any, count: int, form: AnswerForm | None, gone: threading.Event) -> Iterator[Item]:
    plain = form is None or (form.json_schema or {}).get("type") == "object"
    choices = {index: _Choice(None if plain else form) for index in range(count)}
    usage = Usage(0, 0)
    for line in lines:
        if gone.is_set():
            return
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        event = json.loads(data)
        if "error" in event:
            raise EngineError(f"the endpoint could not go on: {_said(event)}")
        if counted := event.get("usage"):
            details = counted.get("prompt_tokens_details") or {}
            usage = Usage(
                counted["prompt_tokens"], counted.get("completion_tokens") or 0, details.get("cached_tokens") or 0
            )
        for one in event.get("choices") or ():
            if (piece := _piece(one, choices[one["index"]])) is not None:
                yield piece
    if not all(choice.ended for choice in choices.values()):
        raise EngineError("the endpoint's answer broke off", fix="ask again")
    yield usage


def _piece(one: Mapping[str, Any], choice: _Choice) -> Piece | None:
    delta = one.get("delta") or {}
    text = delta.get("content") or delta.get("refusal") or one.get("text") or ""
    for part in delta.get("tool_calls") or ():
        call = choice.calls.setdefault(part["index"], _Call())
        function = part.get("function") or {}
        call.name += function.get("name") or ""
        call.arguments += function.get("arguments") or ""
    reason = one.get("finish_reason")
    finish: Finish | None = None
    if reason:
        choice.ended, finish = True, "length" if reason == "length" else "stop"
        text += "".join(call.text for _, call in sorted(choice.calls.items()))
    if choice.wrapped is not None:
        choice.held += text
        text = unwrapped(choice.held, choice.wrapped) if finish else ""
    scores = _scores(one.get("logprobs") or {})
    return Piece(one["index"], text, (), scores, finish) if text or scores or finish else None


def _scores(told: Mapping[str, Any]) -> tuple[TokenScore, ...]:
    """Scores in the form of chat completions, or in that of completions."""
    if "tokens" in told:
        tops = told.get("top_logprobs") or [{}] * len(told["tokens"])
        return tuple(
            TokenScore(*_named(token, None, value), tuple(_named(t, None, v) for t, v in (top or {}).items()))
            for token, value, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
        )
    found = []
    for one in told.get("content") or ():
        top = tuple(_named(t["token"], t.get("bytes"), t["logprob"]) for t in one.get("top_logprobs") or ())
        _, text, data, value = _named(one["token"], one.get("bytes"), one["logprob"])
        found.append(TokenScore(_UNNAMED, text, data, value, top))
    return tuple(found)


def _named(text: str, data: list[int] | None, value: float) -> tuple[int, str, bytes, float]:
    return _UNNAMED, text, text.encode("utf-8", "replace") if data is None else bytes(data), value


def _refusal(error: urllib.error.HTTPError, endpoint: Endpoint) -> Exception:
    try:
        found = json.loads(error.read(20_000))
    except (ValueError, OSError, http.client.HTTPException):
        found = {}
    said = _said(found) or str(error.reason)
    if endpoint.key:
        said = said.replace(endpoint.key, "(the key)")
    if error.code == 429 or error.code == 503:
        asked = (error.headers.get("Retry-After") or "").strip()
        return OverloadedError(min(600, int(asked)) if asked.isascii() and asked.isdecimal() else 5)
    return EngineError(f"the endpoint refuses ({error.code}): {said}", where=endpoint.host)


def _said(found: Any) -> str:
    """The message in an error's body, shortened."""
    inner = found.get("error", found) if isinstance(found, dict) else {}
    text = inner.get("message", "") if isinstance(inner, dict) else str(inner)
    return " ".join(str(text).split())[:_SHOWN]
