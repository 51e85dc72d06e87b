"""A request while it is worked on: its rows, one for each answer, and the way its pieces take to who asked."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.inference.serving.adapters import Adapter
from tunesmith.inference.serving.answer_text import AnswerText, Decode
from tunesmith.inference.serving.choosing import Chooser, Draws, Scored
from tunesmith.inference.serving.memory import Known, as_ids
from tunesmith.inference.serving.token_bytes import TokenBytes
from tunesmith.inference.serving.types import Decoding, Finish, Piece, TokenScore, Usage

Item = Piece | Usage | Exception


@dataclass(frozen=True, slots=True)
class Voice:
    """How tokens of a model become text: the decoder, the bytes of tokens, and the tokens that end an answer."""

    decode: Decode
    token_bytes: TokenBytes
    stop_ids: frozenset[int]


@dataclass(eq=False, slots=True)
class Request:
    """One request.

    Attributes
    ----------
    items: where its pieces go, a queue of `loop`.
    cancelled: nobody listens any more; may be set from any thread.
    cached: tokens of the prompt that were not computed again for the first answer.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    decoding: Decoding
    voice: Voice
    adapter: Adapter | None
    echo_scores: bool
    items: asyncio.Queue[Item]
    loop: asyncio.AbstractEventLoop
    cancelled: bool = False
    ended: bool = False
    cached: int = 0
    arrived: float = field(default_factory=time.perf_counter)
    rows: list[Row] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.ended or self.cancelled

    def token_score(self, token: int, scored: Scored) -> TokenScore:
        """A score with the texts of its tokens."""
        named = self.voice.token_bytes
        top = tuple((i, _text(named(i)), named(i), value) for i, value in scored.top)
        return TokenScore(token, _text(named(token)), named(token), scored.logprob, top)

    def unscored(self, token: int) -> TokenScore:
        """The first token of a prompt, before which nothing comes."""
        data = self.voice.token_bytes(token)
        return TokenScore(token, _text(data), data, math.nan)

    def usage(self) -> Usage:
        answered = sum(row.written for row in self.rows)
        return Usage(len(self.prompt), answered, self.cached, tuple(self.prompt_scores))


@dataclass(eq=False, slots=True)
class Row:
    """One answer. `ids` are prompt and answer so far; `memory` knows the first `memory.length` of them.

    `told` of its written tokens are in pieces that were sent.
    """

    request: Request
    index: int
    chooser: Chooser
    text: AnswerText
    ids: list[int]
    memory: Any = None
    known: Known | None = None
    finish: Finish | None = None
    scores: list[TokenScore] = field(default_factory=list)
    told: int = 0

    @property
    def adapter(self) -> Adapter | None:
        return self.request.adapter

    @property
    def written(self) -> int:
        return len(self.ids) - len(self.request.prompt)

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self.request.max_new_tokens - self.written

    @property
    def writing(self) -> bool:
        """Whether all but the token written last is known."""
        return self.memory is not None and len(self.ids) - self.memory.length == 1 and self.written > 0

    def remember(self, memory: Any) -> None:
        self.memory = memory
        self.known = Known(self.adapter, as_ids(self.ids), memory)

    def forget(self) -> None:
        self.memory = self.known = None

    def write(self, token: int, scored: Scored | None) -> Piece | None:
        """One more token; the piece that can be sent now."""
        request = self.request
        ends = token in request.voice.stop_ids
        self.chooser.take(token, ends)
        self.ids.append(token)
        if ends:
            text, told = self.text.finish()
            self.finish = "stop"
        else:
            if scored is not None:
                self.scores.append(request.token_score(token, scored))
            text, told = self.text.add(token)
            if self.text.stopped:
                self.finish = "stop"
            elif not self.left:
                rest, told = self.text.finish()
                text, self.finish = text + rest, "length"
        return self._piece(text, told)

    def end_unwritten(self) -> Piece | None:
        """Nothing is to be written: the prompt was to be scored."""
        self.finish = "length"
        return self._piece("", 0)

    def _piece(self, text: str, told: int) -> Piece | None:
        if not text and self.finish is None:
            return None
        start, self.told = self.told, max(told, self.told)
        first = len(self.request.prompt)
        ids = tuple(self.ids[first + start : first + self.told])
        return Piece(self.index, text, ids, tuple(self.scores[start : self.told]), self.finish)


class Outbox:
    """What a step has made, until it is handed over to the event loops in which somebody listens."""

    def __init__(self) -> None:
        self._items: list[tuple[Request, Item]] = []

    def put(self, request: Request, item: Item) -> None:
        self._items.append((request, item))

    def send(self) -> None:
        """Hand over what there is, once for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, Item]]] = {}
        for request, item in self._items:
            if not request.cancelled:
                by_loop.setdefault(request.loop, []).append((request, item))
        self._items = []
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_over, items)
            except RuntimeError:  # that event loop has ended, and with it everybody who listened there
                for request, _ in items:
                    request.cancelled = True


def _hand_over(items: Sequence[tuple[Request, Item]]) -> None:
    for request, item in items:
        request.items.put_nowait(item)


def make_rows(request: Request, count: int, held: Sequence[Any]) -> None:
    """Give a request its rows; `held` has for each what keeps it to a form, or None."""
    for index in range(count):
        chooser = Chooser(request.decoding, Draws(request.decoding.seed, index), held[index])
        text = AnswerText(request.voice.decode, request.decoding.stop)
        request.rows.append(Row(request, index, chooser, text, list(request.prompt)))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
