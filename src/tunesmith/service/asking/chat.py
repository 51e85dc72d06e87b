"""Chat completions: the request as a question, its answers as `chat.completion` and as chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from tunesmith.inference.serving.types import TokenScore, Usage
from tunesmith.service.asking.chat_request import ChatRequest, ResponseFormat, check_chat
from tunesmith.service.asking.conversation import turns_of
from tunesmith.service.asking.fields import decoding_of
from tunesmith.service.asking.keeping import keep_completion
from tunesmith.service.asking.scores import chat_scores
from tunesmith.service.asking.tools import offer_of
from tunesmith.service.asking.turn_plan import AnswerFormat, TurnPlan, events_of, plan_turn
from tunesmith.service.asking.turns import Argued, Called, Ended, MadeCall, Said, Turn, TurnEvent, gathered
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.ids import new_id

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """A chat completion that is ready to be asked; `id` and `created` stand in the answer and in every chunk."""

    id: str
    created: int
    request: ChatRequest
    turn: TurnPlan

    @property
    def head(self) -> Json:
        """What every object of the answer begins with."""
        return {
            "id": self.id,
            "created": self.created,
            "model": self.turn.resolved.shown,
            "system_fingerprint": self.turn.fingerprint,
            "service_tier": "default",
        }


async def plan_chat(service: Service, request: ChatRequest) -> ChatPlan:
    """Read a request. Raises `ApiError` for everything that is wrong with it."""
    check_chat(request)
    turns = turns_of(request.messages)
    offer = await run_in_threadpool(offer_of, request)
    decoding = decoding_of(request, (request.top_logprobs or 0) if request.logprobs else None)
    turn = await plan_turn(
        service,
        request.model,
        turns,
        decoding,
        offer=offer,
        answer=_format(request.response_format),
        max_new_tokens=request.length,
        count=request.n or 1,
    )
    return ChatPlan(new_id("chatcmpl"), service.now(), request, turn)


async def complete_chat(service: Service, plan: ChatPlan) -> Json:
    """The whole answer, a `chat.completion`; kept where the request says `store`."""
    async with aclosing(events_of(service, plan.turn)) as events:
        turns, usage = await gathered(events, plan.turn.ask.count)
    return await _finished(service, plan, turns, usage)


async def stream_chat(service: Service, plan: ChatPlan) -> AsyncGenerator[Json, None]:
    """The answer as `chat.completion.chunk` objects: of each answer its role, then what it says, then how it ended."""
    options = plan.request.stream_options
    with_usage = options is not None and bool(options.include_usage)
    turns = [Turn() for _ in range(plan.turn.ask.count)]
    begun = False
    usage = Usage(0, 0)
    async with aclosing(events_of(service, plan.turn)) as events:
        async for event in events:
            if isinstance(event, Usage):
                usage = event
                continue
            if not begun:
                begun = True
                # Clients expect the answers to begin in their order, whichever speaks first.
                for index in range(len(turns)):
                    yield _chunk(plan, with_usage, index, _first_delta(plan, event))
            turns[event.index].take(event)
            if isinstance(event, Ended):
                yield _chunk(plan, with_usage, event.index, {}, finish=_finish(plan, event.finish, event.called))
            else:
                scores = event.scores if isinstance(event, Said) else ()
                yield _chunk(plan, with_usage, event.index, _delta(plan, event), scores=scores)
    if plan.request.store:
        await _finished(service, plan, turns, usage)
    if with_usage:
        yield {**plan.head, "object": "chat.completion.chunk", "choices": [], "usage": usage_body(usage)}


def usage_body(usage: Usage) -> Json:
    """`usage` of chat completions and completions."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.prompt + usage.answer,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def _finished(service: Service, plan: ChatPlan, turns: list[Turn], usage: Usage) -> Json:
    body = {
        **plan.head,
        "object": "chat.completion",
        "choices": [_choice(plan, index, turn) for index, turn in enumerate(turns)],
        "usage": usage_body(usage),
    }
    if plan.request.store:
        await run_in_threadpool(keep_completion, service, plan.request, body)
    if plan.request.store or plan.request.metadata:
        body["metadata"] = plan.request.metadata or {}
    return body


def _choice(plan: ChatPlan, index: int, turn: Turn) -> Json:
    message: Json = {"role": "assistant", "content": turn.text, "refusal": None, "annotations": []}
    if turn.calls:
        message["content"] = turn.text or None
        if plan.turn.offer.legacy:
            message["function_call"] = {"name": turn.calls[0].name, "arguments": turn.calls[0].arguments}
        else:
            message["tool_calls"] = [_call(call) for call in turn.calls]
    scores = None if turn.calls else _scores(plan, turn.scores)
    finish = _finish(plan, turn.finish, bool(turn.calls))
    return {"index": index, "message": message, "logprobs": scores, "finish_reason": finish}


def _call(call: MadeCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _scores(plan: ChatPlan, scores: list[TokenScore] | tuple[TokenScore, ...]) -> Json | None:
    if plan.turn.ask.decoding.top is None:
        return None
    return {"content": chat_scores(scores), "refusal": None}


def _finish(plan: ChatPlan, finish: str, called: bool) -> str:
    """`tool_calls` where calls are complete; of a call that is cut the reason is its length."""
    if called and finish == "stop":
        return "function_call" if plan.turn.offer.legacy else "tool_calls"
    return finish


def _chunk(
    plan: ChatPlan,
    with_usage: bool,
    index: int,
    delta: Json,
    *,
    scores: tuple[TokenScore, ...] = (),
    finish: str | None = None,
) -> Json:
    logprobs = _scores(plan, scores) if scores else None
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    body: Json = {**plan.head, "object": "chat.completion.chunk", "choices": [choice]}
    if with_usage:
        body["usage"] = None
    return body


def _first_delta(plan: ChatPlan, event: TurnEvent) -> Json:
    """The role. `event` is the first of all answers; of one answer alone it tells whether there is text."""
    calls = plan.turn.offer.choice == "required" or (plan.turn.ask.count == 1 and isinstance(event, Called))
    return {"role": "assistant", "content": None if calls else "", "refusal": None}


def _delta(plan: ChatPlan, event: TurnEvent) -> Json:
    legacy = plan.turn.offer.legacy
    match event:
        case Said(_, text, _):
            return {"content": text}
        case Called(_, place, id, name):
            if legacy:
                return {"function_call": {"name": name, "arguments": ""}}
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": place, "id": id, "type": "function", "function": function}]}
        case Argued(_, place, text):
            if legacy:
                return {"function_call": {"arguments": text}}
            return {"tool_calls": [{"index": place, "function": {"arguments": text}}]}
    return {}


def _format(wanted: ResponseFormat | None) -> AnswerFormat:
    if wanted is None or wanted.type == "text":
        return AnswerFormat()
    if wanted.type == "json_object":
        return AnswerFormat({"type": "object"})
    if wanted.json_schema is None:
        raise ApiError(
            400,
            "Missing required parameter: 'response_format.json_schema'.",
            param="response_format.json_schema",
            code="missing_required_parameter",
        )
    # Without a schema OpenAI promises any JSON object.
    return AnswerFormat(wanted.json_schema.schema_ or {"type": "object"}, wanted.json_schema.name)
