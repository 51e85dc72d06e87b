"""A question for the engine in terms that chat completions and responses share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool

from tunesmith.data.types import Message
from tunesmith.errors import TunesmithError
from tunesmith.inference.serving.types import Ask, Decoding, Loaded, TooLongError, Usage
from tunesmith.service.asking.call_form import CallForm, call_form, schema_fault
from tunesmith.service.asking.conversation import as_trained, shortened
from tunesmith.service.asking.engine import Spoken, loaded, pieces_of, too_long
from tunesmith.service.asking.fingerprint import fingerprint
from tunesmith.service.asking.reading import FreeReader, HeldReader
from tunesmith.service.asking.tools import Offer, answer_grammar, grammar_of
from tunesmith.service.asking.turns import TextReader, TurnEvent
from tunesmith.service.catalogue import Resolved
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.ids import new_id
from tunesmith.tasks.types import AnswerForm

MOST_TURNS = 2048
"""Of one conversation."""
_MANY_TURNS = 64
"""From which on it is first seen whether a conversation can fit at all."""
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What an answer is held to: `schema` None is any text. `name` and `param` are what the request calls it."""

    schema: Mapping[str, Any] | None = None
    name: str = ""
    param: str = "response_format"


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """A question that is ready to be asked. `form` is set where every answer is held to calls."""

    resolved: Resolved
    fingerprint: str
    ask: Ask
    offer: Offer
    spoken: Spoken
    form: CallForm | None = None


async def plan_turn(
    service: Service,
    model: str,
    turns: tuple[Message, ...],
    decoding: Decoding,
    *,
    offer: Offer,
    answer: AnswerFormat,
    max_new_tokens: int | None,
    count: int = 1,
    spoken: Spoken = "messages",
    may_shorten: bool = False,
) -> TurnPlan:
    """Everything that can be refused before a model is asked is refused here, as `ApiError`.

    `may_shorten` leaves out the oldest turns of a conversation that does not fit.
    """
    if len(turns) > MOST_TURNS:
        told = f"Invalid value for '{spoken}': expected at most {MOST_TURNS} turns, but got {len(turns)} instead."
        raise ApiError(400, told, param=spoken, code="invalid_value")
    resolved = await run_in_threadpool(service.catalogue.resolve, model)
    known = await loaded(service, resolved.ref)
    if known.renderer is not None:
        check_biases(decoding, known.renderer)
    asked = as_trained(turns, offer.toolset())
    if may_shorten and known.renderer is not None:
        fits = partial(_fits, known, max_new_tokens or 1)
        asked = await run_in_threadpool(shortened, turns, offer.toolset(), fits)
    form = None
    if offer.choice == "none":
        decoding = await run_in_threadpool(_held_to_answer, decoding, answer, known)
    else:
        if known.renderer is not None and (offer.held or answer.schema is not None):
            form = await run_in_threadpool(call_form, known.renderer)
        if answer.schema is not None:
            await run_in_threadpool(_checked_schema, answer)
        grammar = await run_in_threadpool(grammar_of, offer, form, answer.schema)
        decoding = replace(decoding, grammar=grammar)
    ask = Ask(resolved.ref, asked, max_new_tokens, decoding, count)
    mark = await run_in_threadpool(fingerprint, resolved.ref)
    return TurnPlan(resolved, mark, ask, offer, spoken, form if offer.choice == "required" else None)


async def events_of(service: Service, plan: TurnPlan) -> AsyncGenerator[TurnEvent | Usage, None]:
    """Ask, and read the answers while they are written; `Usage` comes last."""
    await _check_length(service, plan)
    readers = [_reader(plan, index) for index in range(plan.ask.count)]
    async with aclosing(pieces_of(service, plan.ask, plan.spoken)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Usage):
                yield piece
            else:
                for event in readers[piece.index].feed(piece):
                    yield event


def check_biases(decoding: Decoding, renderer: Any) -> None:
    """Raises `ApiError` 400 for a token that the model does not have."""
    largest = len(renderer.tokenizer) - 1
    wrong = [key for key in decoding.logit_bias if key > largest]
    if wrong:
        raise ApiError(
            400,
            f"Invalid key in 'logit_bias': {wrong[0]}. Maximum value is {largest}.",
            param="logit_bias",
            code="invalid_value",
        )


async def _check_length(service: Service, plan: TurnPlan) -> None:
    """Raises `ApiError` 400 for a conversation of many turns that can never fit, before it is counted exactly."""
    if len(plan.ask.prompt) <= _MANY_TURNS:
        return
    known = await loaded(service, plan.resolved.ref)
    if known.renderer is not None:
        tokens = await run_in_threadpool(_whole_length, known.renderer, plan.ask.prompt)
        if tokens > known.context + len(plan.ask.prompt):
            raise too_long(TooLongError(tokens, plan.ask.max_new_tokens, known.context), plan.spoken)


def _fits(known: Loaded, room: int, turns: Sequence[Message]) -> bool:
    renderer: Any = known.renderer
    try:
        if len(turns) > _MANY_TURNS and _whole_length(renderer, turns) > known.context + len(turns):
            return False
        return len(renderer.prompt_ids(turns)) + room <= known.context
    except TunesmithError:  # of turns that cannot be rendered the engine says why
        return True


def _whole_length(renderer: Any, turns: Any) -> int:
    """Tokens of a conversation as one text, which may be less by one or so for each turn than what a model is asked
    with: that is cut at every answer, and takes time that grows with the square of the turns. 0 where it cannot be
    rendered.
    """
    try:
        return len(renderer.tokenizer(renderer.prompt_text(turns), add_special_tokens=False)["input_ids"])
    except TunesmithError:  # the engine says why
        return 0


def _reader(plan: TurnPlan, index: int) -> TextReader | FreeReader | HeldReader:
    if plan.offer.choice == "none":
        return TextReader(index)
    if plan.form is not None:
        return HeldReader(index, _call_id, plan.form, plan.offer.names)
    return FreeReader(index, _call_id, several=plan.offer.several)


def _held_to_answer(decoding: Decoding, answer: AnswerFormat, known: Loaded) -> Decoding:
    """An engine that is elsewhere is told the schema; one in this process a grammar, which says more."""
    if answer.schema is None:
        return decoding
    _checked_schema(answer)
    if known.renderer is None:
        return replace(decoding, form=AnswerForm(json_schema=answer.schema))
    return replace(decoding, grammar=answer_grammar(answer.schema))


def _checked_schema(answer: AnswerFormat) -> None:
    fault = schema_fault(answer.schema) if answer.schema not in (None, _ANY_OBJECT) else None
    if fault is not None:
        raise ApiError(400, f"Invalid schema for response_format '{answer.name}': {fault}", param=answer.param)


def _call_id() -> str:
    return new_id("call", separator="_")
