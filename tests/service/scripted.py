"""An engine that says what it was told to say, and is a real one in everything else: it renders prompts with a byte
tokenizer, counts tokens, streams pieces of whole characters, ends at stop texts and token limits, tells scores, holds
answers to grammars, refuses what is too long or too much, and knows which streams were closed early.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from typing import Any

from tests.tiny import byte_tokenizer
from tunesmith.errors import EngineError
from tunesmith.inference.grammar import grammar_text
from tunesmith.inference.serving.types import (
    Ask,
    Decoding,
    Finish,
    Loaded,
    ModelRef,
    OverloadedError,
    Piece,
    TokenScore,
    TooLongError,
    Usage,
)
from tunesmith.text.render import Renderer

Script = str | Sequence[str] | Callable[[Ask], str | Sequence[str]]
"""The answer to everything; the answers in turn to `n`; or what makes either from a request."""


class ScriptedEngine:
    """A `ServingEngine`.

    Parameters
    ----------
    script: see `Script`.
    context: tokens of prompt and answer together; a token is a byte, or one of the tokenizer's special ones.
    per_piece: tokens in a piece; `delay`: seconds before each.
    capacity: requests at the same time; one more raises `OverloadedError`.
    fail_after: pieces after which every answer fails with `EngineError`; None: never.
    chat_template: of models that name none themselves, as in `base.chat_template`, or a Jinja text.

    Attributes
    ----------
    asks: every request, in order. `closed`: how many were ended by closing. `forgotten`: see `forget`.
    """

    def __init__(
        self,
        script: Script = "fine",
        *,
        context: int = 4096,
        per_piece: int = 3,
        delay: float = 0.0,
        capacity: int = 1000,
        fail_after: int | None = None,
        chat_template: str = "auto",
    ) -> None:
        self.script = script
        self.context, self.per_piece, self.delay, self.capacity = context, per_piece, delay, capacity
        self.fail_after = fail_after
        self.asks: list[Ask] = []
        self.closed = 0
        self.running = 0
        self.forgotten: list[ModelRef] = []
        self.draining = False
        own = chat_template if "{" in chat_template else None
        self.tokenizer = byte_tokenizer(own)
        self._byte_of = _byte_of(self.tokenizer)
        self.renderer = Renderer(self.tokenizer, "auto" if own else chat_template)
        self._seen: dict[ModelRef, list[list[int]]] = {}
        self._tokens = 0

    async def load(self, ref: ModelRef) -> Loaded:
        if "missing" in ref.base:
            raise EngineError("there is no such model", where=ref.base)
        return Loaded(ref, self.context, self.renderer_of(ref))

    async def submit(self, ask: Ask) -> AsyncIterator[Piece | Usage]:
        await self.load(ask.model)
        self.asks.append(ask)
        if self.draining or self.running >= self.capacity:
            raise OverloadedError(2)
        prompt = self.prompt_ids(ask)
        if len(prompt) + (ask.max_new_tokens or 1) > self.context:
            raise TooLongError(len(prompt), ask.max_new_tokens, self.context)
        room = self.context - len(prompt) if ask.max_new_tokens is None else ask.max_new_tokens
        said = self.script(ask) if callable(self.script) else self.script
        texts = [said] * ask.count if isinstance(said, str) else [said[i % len(said)] for i in range(ask.count)]
        answers = [self._pieces(i, text, room, ask.decoding) for i, text in enumerate(texts)]
        cached = self._remember(ask.model, prompt)
        self.running += 1
        whole, count, sent = False, 0, 0
        try:
            for turn in range(max(map(len, answers))):
                for pieces in answers:
                    if turn < len(pieces):
                        await asyncio.sleep(self.delay)
                        if self.fail_after is not None and sent >= self.fail_after:
                            raise EngineError("the device is gone", where="/secret/path")
                        sent += 1
                        count += len(pieces[turn].ids)
                        yield pieces[turn]
            scores = tuple(self._score(i, 5) for i in prompt) if ask.echo_scores else ()
            whole = True
            yield Usage(len(prompt), count, cached, scores)
        finally:
            self.running -= 1
            self._tokens += count
            self.closed += not whole

    def forget(self, ref: ModelRef) -> None:
        self.forgotten.append(ref)

    def state(self) -> Mapping[str, float]:
        return {"running": self.running, "waiting": 0, "tokens": self._tokens}

    async def drain(self, seconds: float) -> None:
        self.draining = True
        for _ in range(int(seconds / 0.01)):
            if not self.running:
                return
            await asyncio.sleep(0.01)

    def prompt_ids(self, ask: Ask) -> list[int]:
        """The tokens of a request's prompt."""
        if isinstance(ask.prompt, str):
            return self._ids(ask.prompt)
        if ask.prompt and isinstance(ask.prompt[0], int):
            return list(ask.prompt)  # type: ignore[arg-type]
        return self.renderer_of(ask.model).prompt_ids(ask.prompt)  # type: ignore[arg-type]

    def renderer_of(self, ref: ModelRef) -> Renderer:
        """By the template of the model, where it names one of ours."""
        return self.renderer if ref.chat_template == "auto" else Renderer(self.tokenizer, ref.chat_template)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pieces(self, index: int, text: str, room: int, decoding: Decoding) -> list[Piece]:
        """An answer cut into pieces of whole characters; the last one says how it ended."""
        _check_kept(text, decoding)
        ends = [at for stop in decoding.stop if (at := text.find(stop)) >= 0]
        text = text[: min(ends)] if ends else text
        ids = self._ids(text)
        finish: Finish = "stop" if len(ids) < room or (len(ids) == room and bool(ends)) else "length"
        ids = ids[:room]
        made: list[Piece] = []
        held: list[int] = []
        for place, token in enumerate(ids, 1):
            held.append(token)
            if len(held) >= self.per_piece and (place == len(ids) or self._whole(held)):
                made.append(self._piece(index, held, decoding.top, None))
                held = []
        made.append(self._piece(index, held, decoding.top, finish))
        return made

    def _piece(self, index: int, ids: list[int], top: int | None, finish: Finish | None) -> Piece:
        scores = () if top is None else tuple(self._score(i, top) for i in ids)
        text = self._bytes(ids).decode("utf-8", "ignore" if finish else "strict")
        return Piece(index, text, tuple(ids), scores, finish)

    def _whole(self, ids: list[int]) -> bool:
        try:
            self._bytes(ids).decode()
        except UnicodeDecodeError:
            return False
        return True

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._byte_of[i] for i in ids)

    def _score(self, token: int, top: int) -> TokenScore:
        """Probability a half for the token that is said, and less for each after it."""
        others = [(token + k) % 256 for k in range(top)]
        alternatives = []
        for rank, other in enumerate(others):
            data = self._bytes([other])
            alternatives.append((other, data.decode("utf-8", "replace"), data, math.log(0.5 ** (rank + 1))))
        data = self._bytes([token])
        return TokenScore(token, data.decode("utf-8", "replace"), data, math.log(0.5), tuple(alternatives))

    def _remember(self, ref: ModelRef, prompt: list[int]) -> int:
        """How much of a prompt was there already; at least one token is always computed."""
        seen = self._seen.setdefault(ref, [])
        cached = max((_common(prompt, other) for other in seen), default=0)
        seen.append(prompt)
        return min(cached, len(prompt) - 1)


def _check_kept(text: str, decoding: Decoding) -> None:
    """Raises `EngineError` for a grammar that cannot be compiled, `AssertionError` where the script breaks it."""
    grammar = grammar_text(decoding.form) if decoding.form is not None else decoding.grammar
    if grammar is None:
        return
    from llguidance import LLMatcher

    tokens, tokenizer = _guided()
    matcher = LLMatcher(tokens, grammar, log_level=0)
    if matcher.is_error():
        raise EngineError(f"answers cannot be held to their form: {matcher.get_error().strip().splitlines()[0]}")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    taken = matcher.try_consume_tokens(list(ids))
    assert taken == len(ids), f"after {text[:taken]!r} the grammar does not allow {text[taken:][:20]!r}:\n{grammar}"
    assert matcher.is_accepting(), f"the grammar is not complete after {text!r}:\n{grammar}"


@cache
def _guided() -> tuple[Any, Any]:
    import llguidance.hf

    tokenizer = byte_tokenizer()
    return llguidance.hf.from_tokenizer(tokenizer, eos_token=tokenizer.eos_token_id), tokenizer


def _byte_of(tokenizer: Any) -> dict[int, bytes]:
    """The bytes of every token, by the alphabet of byte-level tokenizers (printable ones stand for themselves, the
    others follow from 256 on); special tokens have none.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [value for value in range(256) if value not in printable]
    shown = {chr(value): bytes([value]) for value in printable}
    shown |= {chr(256 + place): bytes([value]) for place, value in enumerate(others)}
    return {i: shown.get(token, b"") for token, i in tokenizer.get_vocab().items()}


def _common(first: list[int], second: list[int]) -> int:
    place = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        place += 1
    return place
