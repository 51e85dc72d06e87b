"""From an ask to the request that a loop works on: rendered, measured, and its form compiled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from tunesmith.errors import EngineError
from tunesmith.inference.grammar import GrammarError, HeldRows, grammar_text
from tunesmith.inference.serving.adapters import Adapter
from tunesmith.inference.serving.requests import Item, Request, make_rows
from tunesmith.inference.serving.resident import Speaking
from tunesmith.inference.serving.types import Ask, TooLongError
from tunesmith.text.render import Renderer

_SHRUNK = 4
"""Characters of a text that a tokeniser's normalisation may make one of."""


class Answering(Protocol):
    """A model in memory, as far as a request needs it."""

    @property
    def context(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    def speaking(self, template: str) -> Speaking:
        """Renderer and decoder for a chat template."""
        ...


def make_request(ask: Ask, resident: Answering, adapter: Adapter | None, loop: asyncio.AbstractEventLoop) -> Request:
    """A request of an ask: rendered, measured and its form compiled. Raises what `ServingEngine.submit` raises."""
    speaking = resident.speaking(ask.model.chat_template)
    _refuse_endless(ask, speaking, resident.context)
    prompt = _prompt(ask, speaking.renderer)
    if not prompt:
        raise EngineError("the prompt is empty", expected="at least one token")
    unknown = [i for i in (*prompt, *ask.decoding.logit_bias) if not 0 <= i < resident.vocabulary]
    if unknown:
        raise EngineError(
            f"the model has no token {unknown[0]}", expected=f"tokens from 0 to {resident.vocabulary - 1}"
        )
    left = resident.context - len(prompt)
    if left < (1 if ask.max_new_tokens is None else ask.max_new_tokens):
        raise TooLongError(len(prompt), ask.max_new_tokens, resident.context)
    most = left if ask.max_new_tokens is None else ask.max_new_tokens
    items: asyncio.Queue[Item] = asyncio.Queue()
    request = Request(prompt, most, ask.decoding, speaking.voice, adapter, ask.echo_scores, items, loop)
    make_rows(request, ask.count, _held(ask, speaking))
    return request


def _refuse_endless(ask: Ask, speaking: Speaking, context: int) -> None:
    """Raise `TooLongError` for texts so long that no tokeniser could fit them, before minutes are spent on counting.

    The count it tells is what they are at least.
    """
    texts = [ask.prompt] if isinstance(ask.prompt, str) else [t.content for t in ask.prompt if not isinstance(t, int)]
    characters = sum(map(len, texts))
    if characters > context * speaking.longest_token * _SHRUNK:
        raise TooLongError(characters // (speaking.longest_token * _SHRUNK), ask.max_new_tokens, context)


def _prompt(ask: Ask, renderer: Renderer) -> tuple[int, ...]:
    if isinstance(ask.prompt, str):
        special = ask.model.chat_template != "raw"
        return tuple(renderer.tokenizer(ask.prompt, add_special_tokens=special)["input_ids"])
    if ask.prompt and isinstance(ask.prompt[0], int):
        return ask.prompt
    return tuple(renderer.prompt_ids(ask.prompt))  # type: ignore[arg-type]


def _held(ask: Ask, speaking: Speaking) -> Sequence[HeldRows | None]:
    """For each answer what keeps it to its form."""
    form, grammar = ask.decoding.form, ask.decoding.grammar
    if form is None and grammar is None:
        return [None] * ask.count
    text = grammar if form is None else grammar_text(form)
    try:
        return [speaking.grammars().one(text or "") for _ in range(ask.count)]
    except GrammarError as error:
        raise EngineError(
            f"the answer cannot be held to its form: {error}",
            expected="a schema or grammar that llguidance can compile",
            fix="simplify it",
        ) from error
