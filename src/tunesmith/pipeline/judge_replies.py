"""Asking a judge: through an endpoint or in this process, with every reply kept as it comes.

The journal holds each request with what it cost and what came back, so a repeated command pays only for what is
missing. A question that got no answer after all attempts is counted and passed over, and asked again next time; after
several in a row the endpoint is taken to be gone, and the rest is not asked.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tunesmith.data.types import Message
from tunesmith.evaluation.judges import Question, Said
from tunesmith.inference.endpoint import (
    AskError,
    Budget,
    Endpoint,
    FailedError,
    OverBudgetError,
    Reply,
    SilentError,
    token_bound,
)
from tunesmith.inference.types import Engine
from tunesmith.pipeline.synthetic import read_journal
from tunesmith.runs import EventLog

_GIVE_UP = 3
"""Questions in a row without any answer after which no other is asked."""

Keep = Callable[[Question, Said], None]


@dataclass(slots=True)
class Tally:
    """What happened while a judge was asked. kept: replies that an earlier command had left in the journal.

    retried: attempts that were followed by another one, by reason. ended: why not everything was asked, if so.
    """

    kept: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    ended: str = ""


class Judge(Protocol):
    """A model that can be asked many questions."""

    @property
    def name(self) -> str: ...

    def describe(self) -> Mapping[str, Any]:
        """What identifies it."""
        ...

    def ask(self, asked: Sequence[Question], journal: Path, tally: Tally, keep: Keep) -> None:
        """Ask everything that the journal does not hold, and give every reply to `keep`, as it is known.

        Questions that are not reached are given to nobody. Raises `EngineError` where the judge cannot be asked at all.
        """
        ...


@dataclass(frozen=True, slots=True)
class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint; every request stays within the budget."""

    endpoint: Endpoint
    budget: Budget
    max_tokens: int = 512
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0})
    concurrency: int = 4

    @property
    def name(self) -> str:
        return self.endpoint.model

    def describe(self) -> Mapping[str, Any]:
        return {
            "model": self.endpoint.model,
            "endpoint": self.endpoint.host,
            "max_tokens": self.max_tokens,
            "options": dict(self.options),
        }

    def ask(self, asked: Sequence[Question], journal: Path, tally: Tally, keep: Keep) -> None:
        """See `Judge.ask`."""
        reasons: list[str] = []  # appended to by several threads
        endpoint = replace(self.endpoint, retried=reasons.append)
        keys = {_key(question, self.describe()): question for question in asked}
        wanted = _missing(keys, journal, tally, keep)
        failed: list[FailedError] = []
        silent = 0
        with EventLog(journal) as log, ThreadPoolExecutor(self.concurrency) as pool:

            def submit(key: str) -> Future[Reply]:
                # Written first: where this process is killed, what was under way counts as charged.
                turns = keys[key].turns
                log.write("asked", key=key, at_most=[token_bound(turns), self.max_tokens])
                return pool.submit(endpoint.ask, turns, self.budget, max_tokens=self.max_tokens, options=self.options)

            def over() -> bool:
                return bool(tally.ended or failed)

            for key, answer in _answers(wanted, submit, self.concurrency, over):
                silent = silent + 1 if isinstance(answer, SilentError) else 0
                if isinstance(answer, SilentError):
                    log.write("unanswered", key=key, lost=list(answer.lost))
                    keep(keys[key], Said(None, failure="unanswered", detail=answer.told.what))
                    if silent >= _GIVE_UP:
                        tally.ended = f"{silent} questions in a row got no answer"
                elif isinstance(answer, OverBudgetError):
                    log.write("unanswered", key=key, lost=list(answer.lost))
                    tally.ended = f"the ceiling of {answer} is reached"
                elif isinstance(answer, FailedError):
                    log.write("unanswered", key=key, lost=list(answer.lost))
                    failed.append(answer)
                else:
                    keep(keys[key], _write(log, key, answer, self))
        tally.retried.update(_reason(why) for why in reasons)
        if failed:
            raise failed[0].told


@dataclass(frozen=True, slots=True)
class LocalJudge:
    """A model in this process, asked in batches; `weights` is the hash that identifies it."""

    engine: Engine
    model: str
    weights: str
    max_tokens: int = 512

    @property
    def name(self) -> str:
        return self.model

    def describe(self) -> Mapping[str, Any]:
        return {"model": self.model, "weights_sha256": self.weights, "max_tokens": self.max_tokens}

    def ask(self, asked: Sequence[Question], journal: Path, tally: Tally, keep: Keep) -> None:
        """See `Judge.ask`. A question that does not fit the context is refused."""
        keys = {_key(question, self.describe()): question for question in asked}
        wanted = _missing(keys, journal, tally, keep)
        room = self.engine.context - self.max_tokens
        turns = {key: [Message(turn["role"], turn["content"]) for turn in keys[key].turns] for key in wanted}
        fitting = [key for key in wanted if self.engine.count_tokens(turns[key]) <= room]
        too_long = [key for key in wanted if key not in set(fitting)]
        with EventLog(journal) as log:
            for key in too_long:
                told = f"the question does not fit the context of {self.engine.context:,} tokens"
                keep(keys[key], _kept(log, key, None, told, self.model, _usage(0, 0)))
            generations = self.engine.generate([turns[key] for key in fitting], self.max_tokens) if fitting else ()
            for key, said in zip(fitting, generations, strict=True):
                usage = _usage(said.prompt_tokens, said.answer_tokens)
                keep(keys[key], _kept(log, key, said.text, "", self.model, usage))


def _key(question: Question, judge: Mapping[str, Any]) -> str:
    told = json.dumps([list(question.turns), dict(judge)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _missing(keys: Mapping[str, Question], journal: Path, tally: Tally, keep: Keep) -> list[str]:
    """The keys the journal does not hold; what it holds is given to `keep`."""
    known = read_journal(journal).entries
    for key, question in keys.items():
        if key in known:
            entry = known[key]
            tally.kept += 1
            keep(question, _said(entry.text, entry.refused, str(entry.provenance.get("answered_by", ""))))
    return [key for key in keys if key not in known]


def _answers(
    keys: Sequence[str], submit: Callable[[str], Future[Reply]], concurrency: int, over: Callable[[], bool]
) -> Iterator[tuple[str, Reply | AskError]]:
    """Answers as they come. Once it is over nothing more is asked, but what is under way is waited for."""
    waiting: dict[Future[Reply], str] = {}
    rest = iter(keys)
    while True:
        while not over() and len(waiting) < concurrency and (key := next(rest, None)) is not None:
            waiting[submit(key)] = key
        if not waiting:
            return
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            key = waiting.pop(future)
            try:
                answer: Reply | AskError = future.result()
            except AskError as error:
                answer = error
            yield key, answer


def _write(log: EventLog, key: str, answer: Reply | AskError, judge: EndpointJudge) -> Said:
    if isinstance(answer, AskError):
        return _kept(log, key, None, str(answer), "", {**_usage(0, 0), "lost": list(answer.lost)})
    usage = {
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "counted": answer.counted,
        "lost": list(answer.lost),
    }
    more = {
        "response_id": answer.response_id,
        "finish_reason": answer.finish_reason,
        "cost": judge.budget.price(answer.input_tokens, answer.output_tokens),
    }
    return _kept(log, key, answer.text, "", answer.model, usage, **more)


def _kept(
    log: EventLog, key: str, text: str | None, refused: str, model: str, usage: Mapping[str, Any], **more: Any
) -> Said:
    """Write a reply as `synthetic.read_journal` reads it."""
    if text is not None:  # half of a surrogate pair has no UTF-8 form
        text = text.encode("utf-8", "replace").decode("utf-8")
    log.write("reply", key=key, text=text, refused=refused, provenance={"answered_by": model, "usage": usage, **more})
    return _said(text, refused, model)


def _said(text: str | None, refused: str, model: str) -> Said:
    return Said(text, model) if text is not None else Said(None, model, "refused", refused)


def _usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {"input_tokens": input_tokens, "output_tokens": output_tokens, "counted": True, "lost": [0, 0]}


def _reason(why: str) -> str:
    """Reasons that are the same but for addresses and numbers, counted together."""
    if why.startswith("status "):
        return why
    return "timed out" if "timed out" in why else "connection lost"
