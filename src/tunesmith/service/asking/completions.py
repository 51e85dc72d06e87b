"""Completions: texts that a model goes on with.

A model that was tuned on prompt/completion rows is asked by the renderer that it was trained with, so that the prompt
becomes the same tokens; every other model is given the text as it stands.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from tunesmith.data.types import Message
from tunesmith.inference.serving.types import Ask, Loaded, ModelRef, TokenScore, Usage
from tunesmith.service.asking.chat import usage_body
from tunesmith.service.asking.completion_request import USUAL_TOKENS, CompletionRequest, Prompt, check_completion
from tunesmith.service.asking.engine import loaded, pieces_of
from tunesmith.service.asking.fields import decoding_of
from tunesmith.service.asking.fingerprint import fingerprint
from tunesmith.service.asking.merging import merged
from tunesmith.service.asking.scores import completion_scores
from tunesmith.service.asking.turn_plan import check_biases
from tunesmith.service.asking.turns import Turn
from tunesmith.service.catalogue import Resolved
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.ids import new_id

Json = dict[str, Any]
_AT_A_TIME = 32
"""Prompts of one request that are with the engine at the same time, at most: others ask too."""


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """A completion that is ready to be asked. `texts` are the prompts as text, one for each of `asks`."""

    id: str
    created: int
    request: CompletionRequest
    resolved: Resolved
    fingerprint: str
    asks: tuple[Ask, ...]
    texts: tuple[str, ...]

    @property
    def head(self) -> Json:
        """What every object of the answer begins with."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.resolved.shown,
            "system_fingerprint": self.fingerprint,
        }


async def plan_completion(service: Service, request: CompletionRequest) -> CompletionPlan:
    """Read a request. Raises `ApiError` for everything that is wrong with it."""
    check_completion(request)
    resolved = await run_in_threadpool(service.catalogue.resolve, request.model)
    known = await loaded(service, resolved.ref)
    decoding = decoding_of(request, _top(request))
    if known.renderer is not None:
        check_biases(decoding, known.renderer)
    asks, texts = [], []
    for place, prompt in enumerate(request.prompts):
        _check_tokens(prompt, known, place)
        texts.append(_as_text(prompt, known))
        asks.append(
            Ask(
                resolved.ref,
                _as_asked(prompt, resolved.ref, known),
                USUAL_TOKENS if request.max_tokens is None else request.max_tokens,
                decoding,
                request.drawn,
                echo_scores=bool(request.echo) and request.logprobs is not None,
            )
        )
    mark = await run_in_threadpool(fingerprint, resolved.ref)
    return CompletionPlan(new_id("cmpl"), service.now(), request, resolved, mark, tuple(asks), tuple(texts))


async def complete_text(service: Service, plan: CompletionPlan) -> Json:
    """The whole answer, a `text_completion`: of each prompt its `n` answers, the best first where more were drawn."""
    answers = [[Turn() for _ in range(ask.count)] for ask in plan.asks]
    usages = [Usage(0, 0)] * len(plan.asks)
    asked = [pieces_of(service, ask, "prompt") for ask in plan.asks]
    async with aclosing(merged(asked, _AT_A_TIME)) as pieces:
        async for place, piece in pieces:
            if isinstance(piece, Usage):
                usages[place] = piece
            else:
                answers[place][piece.index].take_piece(piece)
    choices: list[Json] = []
    for text, turns, usage in zip(plan.texts, answers, usages, strict=True):
        for turn in _best(turns, plan.request):
            choices.append(_choice(plan.request, len(choices), text, turn, usage))
    return {**plan.head, "choices": choices, "usage": usage_body(_sum(usages))}


async def stream_text(service: Service, plan: CompletionPlan) -> AsyncGenerator[Json, None]:
    """The answer in parts, each a `text_completion` with one choice."""
    request = plan.request
    options = request.stream_options
    with_usage = options is not None and bool(options.include_usage)
    spare: Json = {"usage": None} if with_usage else {}
    usages: list[Usage] = []
    offsets = [len(text) for text in plan.texts for _ in range(request.count)]
    begun: set[int] = set()
    asked = [pieces_of(service, ask, "prompt") for ask in plan.asks]
    async with aclosing(merged(asked, _AT_A_TIME)) as pieces:
        async for place, piece in pieces:
            if isinstance(piece, Usage):
                usages.append(piece)
                continue
            index = place * request.count + piece.index
            text = piece.text
            logprobs = _logprobs(request, piece.scores, offsets[index])
            offsets[index] += len(text)
            if request.echo and index not in begun:
                text = plan.texts[place] + text
            begun.add(index)
            choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": piece.finish}
            yield {**plan.head, "choices": [choice], **spare}
    if with_usage:
        yield {**plan.head, "choices": [], "usage": usage_body(_sum(usages))}


def _top(request: CompletionRequest) -> int | None:
    """Scores are needed to tell them, and to find the best answers."""
    if request.logprobs is not None:
        return request.logprobs
    return 0 if request.drawn > request.count else None


def _as_asked(prompt: Prompt, ref: ModelRef, known: Loaded) -> Any:
    if not isinstance(prompt, str):
        return prompt
    if not prompt and known.renderer is not None:
        # A model goes on from something: what begins a document, or else what ends the one before.
        tokenizer = known.renderer.tokenizer
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if begin is not None:
            return (int(begin),)
    return (Message("user", prompt),) if ref.chat_template == "raw" else prompt


def _as_text(prompt: Prompt, known: Loaded) -> str:
    if isinstance(prompt, str):
        return prompt
    if known.renderer is None:
        return ""
    return str(known.renderer.tokenizer.decode(list(prompt), clean_up_tokenization_spaces=False))


def _check_tokens(prompt: Prompt, known: Loaded, place: int) -> None:
    if isinstance(prompt, str):
        return
    if known.renderer is None:
        raise ApiError(400, "This model is elsewhere and takes text, no tokens.", param="prompt", code="invalid_value")
    largest = len(known.renderer.tokenizer) - 1
    wrong = [token for token in prompt if token > largest]
    if wrong:
        raise ApiError(
            400,
            f"Invalid value for 'prompt': prompt {place + 1} has the token {wrong[0]}, but the model's largest is "
            f"{largest}.",
            param="prompt",
            code="invalid_value",
        )


def _best(turns: Sequence[Turn], request: CompletionRequest) -> Sequence[Turn]:
    """The answers with the highest log-probability per token."""
    if request.drawn == request.count:
        return turns
    return sorted(turns, key=_mean_logprob, reverse=True)[: request.count]


def _mean_logprob(turn: Turn) -> float:
    return sum(score.logprob for score in turn.scores) / max(1, len(turn.scores))


def _choice(request: CompletionRequest, index: int, prompt: str, turn: Turn, usage: Usage) -> Json:
    if not request.echo:
        logprobs = _logprobs(request, turn.scores, len(prompt))
        return {"text": turn.text, "index": index, "logprobs": logprobs, "finish_reason": turn.finish}
    scores = [*usage.prompt_scores, *turn.scores]
    logprobs = _logprobs(request, scores, 0, first_unknown=True)
    return {"text": prompt + turn.text, "index": index, "logprobs": logprobs, "finish_reason": turn.finish}


def _logprobs(
    request: CompletionRequest, scores: Sequence[TokenScore], start: int, *, first_unknown: bool = False
) -> Json | None:
    if request.logprobs is None:
        return None
    return completion_scores(scores, start, first_unknown=first_unknown)


def _sum(usages: Sequence[Usage]) -> Usage:
    columns = [(one.prompt, one.answer, one.cached) for one in usages]
    return Usage(*(sum(column) for column in zip(*columns, strict=True)))
