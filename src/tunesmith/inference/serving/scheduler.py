"""The loop of one model: requests join and leave between two steps, and every step works for all of them at once.

A step is one pass of the model over the next token of every row that is writing, and over some more tokens of prompts
that are still to be read, as many as do not make the others wait. In this order a step

1. takes in what has arrived and leaves out what nobody waits for any more,
2. gives rows a place: of the adapter that has the fewest rows at work, the one that waits longest,
3. makes room: what is kept for later goes first, then the row that came last waits again,
4. runs the model, chooses tokens, and sends pieces.

A prompt that begins like one that is known or in work takes over its keys and values. All of it happens in one thread;
others only put messages into the inbox.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tunesmith.errors import EngineError
from tunesmith.inference.serving.adapters import Adapter
from tunesmith.inference.serving.choosing import Scored, choose, score
from tunesmith.inference.serving.memory import SHORTEST, Beginnings, Known, as_ids, common
from tunesmith.inference.serving.pace import Counts, LoopLimits, Pace
from tunesmith.inference.serving.requests import Outbox, Request, Row
from tunesmith.inference.serving.runner import Part, Runner
from tunesmith.inference.serving.types import OverloadedError, Piece

log = logging.getLogger(__name__)

_LARGEST_CHUNK = 512
_SMALLEST_CHUNK = 32
_FIRST_CHUNK = 128
"""As long as it is not known what they take."""
_TELLING = 64
"""Tokens of prompts from which on a step tells what one of them takes."""
_SCORED_CHUNK = 64
"""Tokens of a prompt whose logits are all wanted: they are as wide as the vocabulary."""
_FORESEEN = 64
"""Tokens of answer for which a row gets room from the start."""


@dataclass(slots=True)
class _Plan:
    """Who takes part in a step, with what."""

    rows: list[Row] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


class ModelLoop:
    """Works for one model until it is closed. `submit`, `forget` and `close` may be called from any thread."""

    def __init__(self, runner: Runner, limits: LoopLimits, name: str, threads: int | None = None) -> None:
        self._runner, self._limits, self._threads = runner, limits, threads
        self.counts = Counts()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: dict[Adapter | None, deque[Row]] = {}
        self._active: list[Row] = []
        self._beginnings = Beginnings()
        self._pace = Pace()
        self._outbox = Outbox()
        self._per_token = 0.0
        self._lock = threading.Lock()
        self._queued = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"serving {name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Take a request in. Raises `OverloadedError` where too many wait, `EngineError` after `close`."""
        count = len(request.rows)
        with self._lock:
            if self._closed:
                raise _ended()
            places = self._limits.waiting + max(0, self._limits.rows - len(self._active))
            if self._queued and self._queued + count > places:
                raise OverloadedError(self.retry_after)
            self._queued += count
            self._inbox.put(lambda: self._enter(request))

    def forget(self, adapter: Adapter) -> None:
        """Forget what is known under an adapter that nobody asks any more."""

        def forget() -> None:
            self._leave_out()  # first: what rows knew is kept when they leave
            self._beginnings.forget(adapter)
            self._runner.forget()

        self._inbox.put(forget)

    def close(self) -> None:
        """Have all that is left answered with an error, and the thread end behind the step that it is in."""
        with self._lock:
            self._closed = True
            self._inbox.put(lambda: None)

    def join(self, seconds: float = 30.0) -> None:
        """Wait until the thread has ended, which takes as long as a step."""
        self._thread.join(seconds)

    @property
    def retry_after(self) -> int:
        """Seconds after which one of those who wait now will have been answered, from the pace so far."""
        per_answer = self._pace.per_answer or 0.5
        return min(60, max(1, math.ceil(per_answer * max(1, self._queued - self._limits.waiting // 2))))

    @property
    def running(self) -> int:
        return len(self._active)

    @property
    def waiting(self) -> int:
        return self._queued

    @property
    def idle(self) -> bool:
        return not self._active and not self._queued

    @property
    def remembered(self) -> int:
        """Bytes of keys and values."""
        held = sum(row.memory.bytes for row in list(self._active) if row.memory is not None)
        return int(held) + self._beginnings.bytes

    # From here on everything happens in the loop's own thread.

    def _work(self) -> None:
        while True:
            self._take_in()
            if self._closed:
                self._fail_all(_ended())
                return
            began = time.perf_counter()
            try:
                self._step()
            except Exception as error:  # whatever it is, who waits must hear of it, and the next ones be served
                log.exception("a step of the model failed")
                self._fail_all(_broken(error))
            self.counts.seconds += time.perf_counter() - began

    def _take_in(self) -> None:
        """Messages that are there; waits for one where there is nothing to do."""
        if not self._active and not any(self._waiting.values()):
            self._inbox.get()()
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                break
        self._leave_out()
        for adapter, rows in list(self._waiting.items()):
            if any(row.request.over for row in rows):
                left = deque(row for row in rows if not row.request.over)
                self._count_queued(len(left) - len(rows))
                self._waiting[adapter] = left
            if not self._waiting[adapter]:
                del self._waiting[adapter]

    def _leave_out(self) -> None:
        """Rows at work for which nobody waits any more."""
        for row in [row for row in self._active if row.request.over]:
            self._leave(row)

    def _enter(self, request: Request) -> None:
        self.counts.requests += 1
        self._waiting.setdefault(request.adapter, deque()).extend(request.rows)

    def _step(self) -> None:
        self._admit()
        self._make_room()
        plan = self._plan()
        if not plan.rows:
            return
        read = sum(len(part.ids) for part in plan.parts) - sum(row.writing for row in plan.rows)
        if self._threads is not None:  # each time: a library beneath torch keeps one number for all threads
            torch.set_num_threads(self._threads)
        began = time.perf_counter()
        logits = self._runner.run(plan.parts)
        self._measure(plan, read, time.perf_counter() - began)
        self._answer(plan, logits)
        self._outbox.send()

    def _admit(self) -> None:
        while len(self._active) < self._limits.rows and (row := self._next_waiting()) is not None:
            room = len(row.ids) + min(row.left, _FORESEEN)
            used = sum(r.memory.bytes if r.memory is not None else len(r.ids) * self._per_token for r in self._active)
            if self._active and used + room * self._per_token > self._limits.memory:
                return
            self._waiting[row.adapter].popleft()
            self._count_queued(-1)
            self._active.append(row)

    def _next_waiting(self) -> Row | None:
        """The one that waits longest among those of the adapter that has the fewest rows at work."""
        working: dict[Adapter | None, int] = {}
        for row in self._active:
            working[row.adapter] = working.get(row.adapter, 0) + 1
        first = [rows[0] for rows in self._waiting.values() if rows]
        return min(first, key=lambda row: (working.get(row.adapter, 0), row.request.arrived), default=None)

    def _make_room(self) -> None:
        while self.remembered > self._limits.memory:
            if self._beginnings.drop_oldest():
                continue
            holding = [row for row in self._active if row.memory is not None]
            if len(holding) < 2:
                return
            row = holding[-1]
            row.forget()
            self._active.remove(row)
            self._waiting.setdefault(row.adapter, deque()).appendleft(row)
            self._count_queued(1)
            self.counts.preempted += 1

    def _plan(self) -> _Plan:
        """Rows and parts, those of one adapter together."""
        chosen: list[tuple[Row, Part]] = []
        reading = []
        for row in self._active:
            if row.writing:
                chosen.append((row, Part(row.memory, row.ids[-1:], row.adapter)))
            else:
                reading.append(row)
        budget = self._chunk() if chosen else _LARGEST_CHUNK
        for row in reading:
            if budget <= 0:
                break
            if row.memory is None and not self._begin(row):
                continue
            part = self._next_part(row, budget)
            budget -= len(part.ids)
            chosen.append((row, part))
        order: dict[Adapter | None, int] = {}
        for row, _ in chosen:
            order.setdefault(row.adapter, len(order))
        chosen.sort(key=lambda pair: order[pair[0].adapter])
        return _Plan([row for row, _ in chosen], [part for _, part in chosen])

    def _chunk(self) -> int:
        """Tokens of prompts that may be read in one step while others write."""
        each = self._pace.per_read_token
        return _FIRST_CHUNK if not each else min(_LARGEST_CHUNK, max(_SMALLEST_CHUNK, int(self._limits.stall / each)))

    def _begin(self, row: Row) -> bool:
        """Give a row its memory, with what is known of its beginning; False where another is just about to read it."""
        room = len(row.ids) + min(row.left, _FORESEEN)
        if not self._runner.shares or row.request.echo_scores:
            row.remember(self._runner.memory(room))
            return True
        ids = as_ids(row.ids)
        running = [one.known for one in self._active if one.known is not None]
        found, length = self._beginnings.longest(row.adapter, ids, running)
        same = (one for one in running if one.adapter is row.adapter)
        if any(common(one.ids, ids[:-1]) > length + SHORTEST for one in same):
            return False
        row.remember(self._runner.memory(room) if found is None else found.segment.copy(length, room))
        if row.index == 0 and not row.written:
            row.request.cached = length
            self.counts.cached_tokens += length
        return True

    def _next_part(self, row: Row, budget: int) -> Part:
        start = row.memory.length
        left = len(row.ids) - start
        if not self._runner.shares:
            budget = left
        elif row.request.echo_scores:
            budget = min(budget, _SCORED_CHUNK)
        count = min(left, budget)
        ids = row.ids[start : start + count]
        if row.request.echo_scores and row.index == 0 and not row.written:
            return Part(row.memory, ids, row.adapter, "all")
        return Part(row.memory, ids, row.adapter, "last" if count == left else "none")

    def _measure(self, plan: _Plan, read: int, seconds: float) -> None:
        self.counts.steps += 1
        self.counts.prompt_tokens += read
        if read >= _TELLING:  # fewer say more about the step than about their tokens
            self._pace.read(read, seconds)
        if not self._per_token:
            row = plan.rows[0]
            self._per_token = row.memory.bytes / max(1, len(row.ids) + min(row.left, _FORESEEN))

    def _answer(self, plan: _Plan, logits: Tensor) -> None:
        """What the logits of a step mean for its rows."""
        asking: list[tuple[Row, int]] = []
        at = 0
        for row, part in zip(plan.rows, plan.parts, strict=True):
            count = {"last": 1, "all": len(part.ids), "none": 0}[part.wants]
            if part.wants == "all":
                self._score_prompt(row, row.memory.length - count, logits[at : at + count])
            at += count
            if row.memory.length == len(row.ids):
                if row.left:
                    asking.append((row, at - 1))
                else:
                    self._tell(row, row.end_unwritten())
        if asking:
            self._write([row for row, _ in asking], logits[[place for _, place in asking]])

    def _write(self, rows: Sequence[Row], logits: Tensor) -> None:
        """The next token of rows that want one, from their logits [rows, V]."""
        chosen = choose(logits, [row.chooser for row in rows])
        tops = [row.request.decoding.top for row in rows]
        wanted = [i for i, one in enumerate(chosen) if one.token is not None and tops[i] is not None]
        scores = dict[int, Scored]()
        if wanted:
            tokens = [token for i in wanted if (token := chosen[i].token) is not None]
            widest = max(tops[i] or 0 for i in wanted)
            scores = dict(zip(wanted, score(logits[wanted], tokens, widest), strict=True))
        for i, (row, one) in enumerate(zip(rows, chosen, strict=True)):
            if row.request.over:  # another answer of the same request has failed
                continue
            if one.token is None:
                self._fail(row.request, EngineError(one.why))
                continue
            scored = scores.get(i)
            if scored is not None:
                scored = replace(scored, top=scored.top[: tops[i] or 0])
            self.counts.answer_tokens += 1
            try:
                piece = row.write(one.token, scored)
            except Exception as error:  # one row's form or text must not end the others
                log.exception("an answer could not be continued")
                self._fail(row.request, _broken(error))
                continue
            self._tell(row, piece)

    def _score_prompt(self, row: Row, start: int, logits: Tensor) -> None:
        """Log-probabilities of the prompt's tokens behind those at `start` and after it."""
        request = row.request
        if not start:  # anew where the row has given up its place meanwhile
            request.prompt_scores = [request.unscored(request.prompt[0])]
        following = request.prompt[start + 1 : start + 1 + len(logits)]
        if following:
            scored = score(logits[: len(following)], following, request.decoding.top or 0)
            made = map(request.token_score, following, scored)
            request.prompt_scores.extend(made)

    def _tell(self, row: Row, piece: Piece | None) -> None:
        if piece is not None:
            self._outbox.put(row.request, piece)
        if row.finish is not None:
            self._leave(row)
            if all(one.finish is not None for one in row.request.rows):
                row.request.ended = True
                self._outbox.put(row.request, row.request.usage())
                self._pace.ended(busy=bool(self._active) or self._queued > 0)

    def _leave(self, row: Row) -> None:
        """Take a row out of work; what it knew may serve another."""
        self._active.remove(row)
        if row.memory is not None and self._runner.shares and row.memory.length:
            self._beginnings.keep(Known(row.adapter, as_ids(row.ids[: row.memory.length]), row.memory))
        row.forget()

    def _fail(self, request: Request, error: EngineError) -> None:
        """End a request; what its rows knew may be what is wrong, and is not kept."""
        self.counts.failed += 1
        request.ended = True
        self._outbox.put(request, error)
        for row in request.rows:
            row.forget()

    def _fail_all(self, error: EngineError) -> None:
        """Answer everybody with an error, and begin anew."""
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                break
        rows = [*self._active, *(row for rows in self._waiting.values() for row in rows)]
        for request in {row.request for row in rows}:
            if not request.over:
                self._fail(request, error)
        self._count_queued(-sum(map(len, self._waiting.values())))  # not to 0: others may be about to enter
        self._active, self._waiting, self._beginnings = [], {}, Beginnings()
        self._outbox.send()

    def _count_queued(self, more: int) -> None:
        with self._lock:
            self._queued += more


def _ended() -> EngineError:
    return EngineError("the server is shutting down", fix="ask again when it is back")


def _broken(error: Exception) -> EngineError:
    """What a client is told of a failure inside; the log has the rest."""
    return EngineError(f"the model could not continue ({type(error).__name__})", fix="ask again; see the server's log")
