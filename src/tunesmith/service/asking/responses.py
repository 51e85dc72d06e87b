"""Responses: the request as a question, the turn as a response, and what is kept of both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from tunesmith.errors import RecipeError
from tunesmith.inference.serving.types import Decoding, Usage
from tunesmith.service.asking.chat_request import ChatMessage
from tunesmith.service.asking.conversation import turns_of
from tunesmith.service.asking.engine import loaded, unrenderable
from tunesmith.service.asking.fields import unsupported
from tunesmith.service.asking.response_building import ResponseBuilder
from tunesmith.service.asking.response_request import (
    AskedItems,
    CountRequest,
    Items,
    ResponseRequest,
    check_items,
    check_response,
    own_items,
    response_format,
    response_offer,
)
from tunesmith.service.asking.turn_plan import TurnPlan, events_of, plan_turn
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.ids import new_id
from tunesmith.service.store.nouns import StoredResponse
from tunesmith.service.validation import refusal

Json = dict[str, Any]
_LONGEST_CHAIN = 1000
"""Responses that one may continue, one after the other."""


@dataclass(frozen=True, slots=True)
class ResponsePlan:
    """A response that is ready to be asked. `items` are its own input, `id` and `created` stand in every event."""

    id: str
    created: int
    request: ResponseRequest
    items: tuple[Json, ...]
    turn: TurnPlan


async def plan_response(service: Service, request: ResponseRequest) -> ResponsePlan:
    """Read a request. Raises `ApiError` for everything that is wrong with it."""
    check_response(request)
    own = [_with_id(item) for item in own_items(request)]
    decoding = Decoding(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top=(request.top_logprobs or 0) if request.with_logprobs else None,
    )
    turn = await _plan(service, request, own, decoding, request.max_output_tokens)
    return ResponsePlan(new_id("resp", separator="_"), service.now(), request, tuple(own), turn)


async def count_tokens(service: Service, request: CountRequest) -> int:
    """The tokens that a model would be asked with. Raises `ApiError` as for a request that is answered."""
    turn = await _plan(service, request, own_items(request), Decoding(), None)
    known = await loaded(service, turn.resolved.ref)
    if known.renderer is None:
        raise unsupported("model", "it is elsewhere, and its tokens are not known here")
    try:
        return len(await run_in_threadpool(known.renderer.prompt_ids, turn.ask.prompt))
    except RecipeError as error:
        raise unrenderable(error, turn.spoken) from None


async def _plan(
    service: Service, request: AskedItems, own: Sequence[Json], decoding: Decoding, max_new_tokens: int | None
) -> TurnPlan:
    """The question that a request is, its input behind what it continues."""
    check_items(request)
    offer = await run_in_threadpool(response_offer, request)
    earlier: list[Json] = []
    if request.previous_response_id is not None:
        earlier = await run_in_threadpool(_history, service, request.previous_response_id)
    items = Items()
    if request.instructions is not None:
        items.messages.append(ChatMessage(role="system", content=request.instructions))
        items.places.append("instructions")
    items.add_all(earlier, "previous_response_id")
    items.add_all(own, "input")
    if items.problems:
        raise refusal(items.problems)
    if not items.messages:
        raise ApiError(
            400, "Invalid value for 'input': there is nothing to answer.", param="input", code="invalid_value"
        )
    return await plan_turn(
        service,
        request.model,
        turns_of(items.messages, items.places),
        decoding,
        offer=offer,
        answer=response_format(request),
        max_new_tokens=max_new_tokens,
        spoken="input",
        may_shorten=request.truncation == "auto",
    )


async def complete_response(service: Service, plan: ResponsePlan) -> Json:
    """The whole response; kept unless the request says otherwise."""
    builder = _builder(plan)
    usage = Usage(0, 0)
    async with aclosing(events_of(service, plan.turn)) as events:
        async for event in events:
            if isinstance(event, Usage):
                usage = event
            else:
                for _ in builder.take(event):
                    pass
    for _ in builder.end(usage, service.now()):
        pass
    await _keep(service, plan, builder.body)
    return builder.body


async def stream_response(service: Service, plan: ResponsePlan) -> AsyncGenerator[Json, None]:
    """The response as typed events. What fails before the first of them is raised; later it is `response.failed`."""
    builder = _builder(plan)
    usage = Usage(0, 0)
    begun = False
    async with aclosing(events_of(service, plan.turn)) as events:
        try:
            async for event in events:
                if not begun:
                    begun = True
                    for told in builder.begin():
                        yield told
                if isinstance(event, Usage):
                    usage = event
                else:
                    for told in builder.take(event):
                        yield told
        except ApiError as error:
            if not begun:
                raise
            yield builder.fail(error)
            await _keep(service, plan, builder.body)
            return
    last = list(builder.end(usage, service.now()))
    await _keep(service, plan, builder.body)  # before the client hears of it: it may ask for it at once
    for told in last:
        yield told


def kept_response(service: Service, id: str) -> StoredResponse:
    """Raises `ApiError` 404."""
    found = service.store.get(StoredResponse, id)
    if found is None:
        raise ApiError(404, f"Response with id '{id[:128]}' not found.", param="response_id")
    return found


def forget_response(service: Service, id: str) -> None:
    """Raises `ApiError` 404."""
    if not service.store.remove(StoredResponse, id):
        raise ApiError(404, f"Response with id '{id[:128]}' not found.", param="response_id")


def input_items(service: Service, id: str) -> Sequence[Json]:
    """Everything a kept response was an answer to, oldest first: its own input, and before it what it continued."""
    record = kept_response(service, id)
    previous = record.request.get("previous_response_id")
    earlier = _history(service, str(previous)) if previous else []
    return [_shown(item) for item in (*earlier, *record.request["items"])]


def _builder(plan: ResponsePlan) -> ResponseBuilder:
    request = plan.request
    offer = plan.turn.offer
    text: Json = {"format": {"type": "text"}}
    if request.text is not None and request.text.format is not None:
        text["format"] = request.text.format.model_dump(mode="json", by_alias=True, exclude_none=True)
    body = {
        "id": plan.id,
        "object": "response",
        "created_at": plan.created,
        "model": plan.turn.resolved.shown,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": True if request.parallel_tool_calls is None else request.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": plan.turn.ask.decoding.temperature,
        "text": text,
        "tool_choice": request.tool_choice or "auto",
        "tools": [{"type": "function", "parameters": None, "strict": None, **one.given} for one in offer.functions],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": plan.turn.ask.decoding.top_p,
        "truncation": request.truncation or "disabled",
        "user": request.user,
        "background": False,
    }
    return ResponseBuilder(body, with_logprobs=request.with_logprobs)


async def _keep(service: Service, plan: ResponsePlan, body: Json) -> None:
    if plan.request.store is False:
        return
    asked = {"items": list(plan.items), "previous_response_id": plan.request.previous_response_id}
    record = StoredResponse(plan.id, plan.created, str(body["model"]), asked, body, plan.request.metadata)
    await run_in_threadpool(service.store.add, record)


def _history(service: Service, last: str) -> list[Json]:
    """Inputs and outputs of a response and of those that it continues, oldest first."""
    parts: list[list[Json]] = []
    id: str | None = last
    while id is not None and len(parts) < _LONGEST_CHAIN:
        found = service.store.get(StoredResponse, id)
        if found is None:
            raise ApiError(
                400,
                f"Previous response with id '{id[:128]}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        parts.append([*found.request["items"], *found.answer["output"]])
        id = found.request.get("previous_response_id")
    return [item for part in reversed(parts) for item in part]


def _with_id(item: Json) -> Json:
    if item.get("id"):
        return item
    prefix = {"function_call": "fc", "function_call_output": "fco"}.get(str(item.get("type")), "msg")
    return {**item, "id": new_id(prefix, separator="_")}


def _shown(item: Json) -> Json:
    """An item as the list of input items shows it: messages have their type, and parts instead of a text."""
    if item.get("type", "message") != "message":
        return {"status": "completed", **item}
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        content = [{"type": kind, "text": content, **({"annotations": []} if kind == "output_text" else {})}]
    return {"status": "completed", **item, "type": "message", "content": content}
