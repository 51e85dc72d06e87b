"""Rows made by another model: rewordings of the training inputs, or a teacher's answers to inputs.

    requests -> replies (kept in a journal as they come) -> rows, screened like any others -> a folder to train from

Only training rows and inputs given for the purpose are shown to the model: never validation or test rows. The journal
is the record of every request with what it cost and what came back; a command that was interrupted asks only for what
is missing in it. Rows are made from the whole journal anew each time, so they do not depend on the order of replies.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.types import Example
from tunesmith.inference.endpoint import (
    AskError,
    Budget,
    Endpoint,
    FailedError,
    OverBudgetError,
    RefusedError,
    Reply,
    token_bound,
)
from tunesmith.pipeline.prepare import Listener
from tunesmith.runs import EventLog, read_events
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.types import Task
from tunesmith.text.plain_tools import in_plain_words
from tunesmith.text.render import offered_by

JOURNAL = "journal.jsonl"
Kind = Literal["paraphrase", "teacher"]
_REWORD = (
    "You reword inputs so that a model learns to understand them however they are put. Keep the meaning, the language, "
    "and every name, number and quoted word. Change words, word order and tone as different people would. Answer with "
    "a JSON list of {count} texts and nothing else."
)


@dataclass(frozen=True, slots=True)
class Request:
    """One question. `key` is a hash of all that decides its answer; `parent` the example it is about."""

    key: str
    kind: Kind
    parent: Example
    turns: tuple[Mapping[str, str], ...]
    max_tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the journal holds of a request: its reply, or why there is none."""

    key: str
    text: str | None
    refused: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Journal:
    """What was asked before. `input_tokens` and `output_tokens` count what was lost on the way too, at its most."""

    entries: Mapping[str, Entry]
    input_tokens: int
    output_tokens: int


def paraphrase_requests(
    parents: Sequence[tuple[Example, str]], count: int, model: str, *, max_tokens: int, options: Mapping[str, Any]
) -> list[Request]:
    """Questions for `count` rewordings of each parent's text (its input, or the column of it that is prose)."""
    made = []
    for parent, text in parents:
        turns = ({"role": "system", "content": _REWORD.format(count=count)}, {"role": "user", "content": text})
        made.append(_request("paraphrase", parent, turns, model, max_tokens, options))
    return made


def teacher_requests(
    parents: Sequence[Example], task: Task, model: str, *, max_tokens: int, options: Mapping[str, Any]
) -> list[Request]:
    """The parents' questions, asked as a model that was not tuned is asked: with the full instruction.

    Tools are told in plain words, which any endpoint takes.
    """
    made = []
    for parent in parents:
        asked = asking_conversation(task, parent, full=True)
        asked = in_plain_words(asked, offered_by(asked))
        turns = tuple({"role": message.role, "content": message.content} for message in asked)
        made.append(_request("teacher", parent, turns, model, max_tokens, options))
    return made


def collect(
    requests: Sequence[Request],
    endpoint: Endpoint,
    budget: Budget,
    journal: Path,
    *,
    concurrency: int,
    listener: Listener = lambda event: None,
) -> tuple[dict[str, Entry], str]:
    """Ask what the journal does not hold yet, `concurrency` at a time; returns all entries by key, and why it ended.

    The reason is empty where everything was asked, else which ceiling of the budget was reached. `budget` is charged
    with what the journal says was spent before. Raises `EngineError` where the endpoint fails for good; what came back
    until then is in the journal.
    """
    began = time.monotonic()
    before = read_journal(journal)
    known = dict(before.entries)
    budget.correct((0, 0), (before.input_tokens, before.output_tokens))
    wanted = [request for request in {r.key: r for r in requests}.values() if request.key not in known]
    ended, failed = "", None
    with EventLog(journal) as log, ThreadPoolExecutor(concurrency) as pool:

        def ask(request: Request) -> Future[Reply]:
            # Written first: where this process is killed, what was under way counts as charged.
            log.write("asked", key=request.key, at_most=[token_bound(request.turns), request.max_tokens])
            return pool.submit(
                endpoint.ask, request.turns, budget, max_tokens=request.max_tokens, options=request.options
            )

        for done, (request, answer) in enumerate(_answers(wanted, ask, concurrency), 1):
            if isinstance(answer, OverBudgetError | FailedError):
                log.write("unanswered", key=request.key, lost=list(answer.lost))
                ended = str(answer) if isinstance(answer, OverBudgetError) else ended
                failed = answer if isinstance(answer, FailedError) else failed
                continue
            entry = _entry(request, answer, endpoint, budget)
            log.write("reply", key=entry.key, text=entry.text, refused=entry.refused, provenance=entry.provenance)
            known[entry.key] = entry
            listener(
                {"kind": "progress", "stage": "synthetic", "label": "rows asked", "done": done, "total": len(wanted),
                 "unit": "rows", "seconds": time.monotonic() - began}
            )  # fmt: skip
    if failed is not None:
        raise failed.told
    return known, ended


def read_journal(path: Path) -> Journal:
    """What a journal holds; nothing where there is no file yet."""
    entries: dict[str, Entry] = {}
    open_: dict[str, tuple[int, int]] = {}
    spent = [0, 0]
    for event in read_events(path) if path.is_file() else ():
        key = event.get("key", "")
        if event["kind"] == "asked":
            open_[key] = tuple(event["at_most"])
        elif event["kind"] in ("reply", "unanswered"):
            open_.pop(key, None)
        if event["kind"] == "unanswered":
            spent = [total + lost for total, lost in zip(spent, event["lost"], strict=True)]
        if event["kind"] == "reply":
            entries[key] = Entry(key, event["text"], event["refused"], event["provenance"])
            usage = event["provenance"]["usage"]
            used = (usage["input_tokens"], usage["output_tokens"])
            spent = [total + one + lost for total, one, lost in zip(spent, used, usage["lost"], strict=True)]
    under_way = [sum(bound[side] for bound in open_.values()) for side in (0, 1)]
    return Journal(entries, spent[0] + under_way[0], spent[1] + under_way[1])


def _answers(
    requests: Sequence[Request], ask: Callable[[Request], Future[Reply]], concurrency: int
) -> Iterator[tuple[Request, Reply | AskError]]:
    """Answers as they come. After one that ends it all nothing more is asked, but what is under way is waited for."""
    waiting: dict[Future[Reply], Request] = {}
    rest = iter(requests)
    over = False
    while True:
        while not over and len(waiting) < concurrency and (request := next(rest, None)) is not None:
            waiting[ask(request)] = request
        if not waiting:
            return
        finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in finished:
            request = waiting.pop(future)
            try:
                yield request, future.result()
            except AskError as error:
                over = over or not isinstance(error, RefusedError)
                yield request, error


def _entry(request: Request, answer: Reply | AskError, endpoint: Endpoint, budget: Budget) -> Entry:
    provenance = {
        "kind": request.kind,
        "model": endpoint.model,
        "endpoint": endpoint.host,
        "prompt_sha256": request.key,
        "parent": {"id": request.parent.id, "line": request.parent.line, "source": Path(request.parent.source).name},
        "options": dict(request.options),
    }
    if isinstance(answer, AskError):
        nothing = {"input_tokens": 0, "output_tokens": 0, "counted": False, "lost": list(answer.lost)}
        return Entry(request.key, None, str(answer), {**provenance, "usage": nothing, "cost": 0.0})
    used = {
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "counted": answer.counted,
        "lost": list(answer.lost),
    }
    more = {
        "answered_by": answer.model,
        "response_id": answer.response_id,
        "finish_reason": answer.finish_reason,
        "usage": used,
        "cost": budget.price(answer.input_tokens, answer.output_tokens),
    }
    return Entry(request.key, answer.text, "", {**provenance, **more})


def _request(
    kind: Kind,
    parent: Example,
    turns: tuple[Mapping[str, str], ...],
    model: str,
    max_tokens: int,
    options: Mapping[str, Any],
) -> Request:
    asked = json.dumps([kind, model, parent.id, list(turns), max_tokens, dict(options)], sort_keys=True)
    return Request(hashlib.sha256(asked.encode()).hexdigest(), kind, parent, turns, max_tokens, options)


def texts_in(reply: str) -> list[str] | None:
    """The texts of a reply that should be a JSON list of them, or None; words around the list are passed over."""
    begin, end = reply.find("["), reply.rfind("]")
    if begin < 0 or end < begin:
        return None
    try:
        found = json.loads(reply[begin : end + 1])
    except ValueError:
        return None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        return None
    return [text.strip() for text in found]
