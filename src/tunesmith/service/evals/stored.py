"""Stored answers as rows: what was asked becomes the item, what was answered the sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, TypeVar

from tunesmith.service.context import Service
from tunesmith.service.evals.shapes import StoredCompletions, StoredResponses
from tunesmith.service.grading import sample_of
from tunesmith.service.store.interface import Page
from tunesmith.service.store.nouns import StoredCompletion, StoredResponse

S = TypeVar("S", StoredCompletion, StoredResponse)
_AT_ONCE = 200
Pair = tuple[dict[str, Any], dict[str, Any]]
"""Item and sample."""


def completion_rows(service: Service, wanted: StoredCompletions) -> Iterator[Pair]:
    """Oldest first; with a limit the newest so many."""
    found = _stored(service, StoredCompletion, wanted, "desc" if wanted.limit else "asc")
    chosen = reversed(list(islice(found, wanted.limit))) if wanted.limit else found
    for one in chosen:
        item = {"input": list(one.request.get("messages", ())), "model": one.model, "metadata": one.metadata or {}}
        if one.request.get("tools"):
            item["tools"] = one.request["tools"]
        yield item, sample_of_completion(one.answer)


def response_rows(service: Service, wanted: StoredResponses) -> Iterator[Pair]:
    """Oldest first."""
    for one in _stored(service, StoredResponse, wanted, "asc"):
        if _fits(one.request, wanted):
            item = {"input": _messages(one.request), "model": one.model, "metadata": one.metadata or {}}
            yield item, sample_of_response(one.answer)


def _stored(
    service: Service, kind: type[S], wanted: StoredCompletions | StoredResponses, order: Literal["asc", "desc"]
) -> Iterator[S]:
    """What fits model, metadata and time, a page at a time."""
    after: str | None = None
    where = {"model": wanted.model} if wanted.model else None
    while True:
        found = service.store.page(kind, Page(_AT_ONCE, after, order), where, wanted.metadata)
        yield from (one for one in found.items if _in_time(one.created_at, wanted))
        if not found.has_more:
            return
        after = found.items[-1].id


def sample_of_completion(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The namespace `sample` of a chat completion's first choice."""
    choices = answer["choices"]
    message = choices[0]["message"]
    return sample_of(message.get("content") or "", message.get("tool_calls") or (), choices, model=answer.get("model"))


def sample_of_response(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a response: its texts joined, its calls in the form that chat completions give them."""
    texts, calls = [], []
    for one in answer.get("output", ()):
        if one["type"] == "message":
            texts += [part.get("text", "") for part in one["content"]]
        elif one["type"] == "function_call":
            function = {"name": one["name"], "arguments": one["arguments"]}
            calls.append({"id": one["call_id"], "type": "function", "function": function})
    return sample_of("".join(texts), calls, model=answer.get("model"))


def _in_time(moment: int, wanted: StoredCompletions | StoredResponses) -> bool:
    return (wanted.created_after is None or moment >= wanted.created_after) and (
        wanted.created_before is None or moment <= wanted.created_before
    )


def _fits(request: Mapping[str, Any], wanted: StoredResponses) -> bool:
    tools = {tool.get("name") or tool.get("type") for tool in request.get("tools") or ()}
    return (
        (wanted.temperature is None or request.get("temperature", 1.0) == wanted.temperature)
        and (wanted.top_p is None or request.get("top_p", 1.0) == wanted.top_p)
        and (wanted.instructions_search or "").casefold() in (request.get("instructions") or "").casefold()
        and (wanted.users is None or request.get("user") in wanted.users)
        and (wanted.tools is None or tools >= set(wanted.tools))
        and (
            wanted.reasoning_effort is None or (request.get("reasoning") or {}).get("effort") == wanted.reasoning_effort
        )
    )


def _messages(request: Mapping[str, Any]) -> list[Any]:
    """The input of a request as messages, its instructions first."""
    given = request.get("input") or []
    asked: Sequence[Any] = [{"role": "user", "content": given}] if isinstance(given, str) else given
    told = request.get("instructions")
    return [*([{"role": "system", "content": told}] if told else []), *asked]
