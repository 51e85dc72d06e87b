"""What an endpoint said to a list of prompts, kept as it comes, so that an interrupted list pays for nothing twice.

Answers arrive in any order and are handed on in that of the list: what has overtaken an earlier one would be lost with
the process. Every request stands in the file before it is sent, and its reply when it is there; what was under way when
a process died counts as charged. Entries belong to one list, by a hash of everything that decides its answers.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tunesmith.inference.endpoint import Reply
from tunesmith.runs import EventLog, read_events

Reason = Literal["no answer", "refused", "unreadable"]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A prompt without an answer after all tries, and what was said about it."""

    reason: Reason
    detail: str = ""

    @property
    def doubtful(self) -> bool:
        """Whether it says something about the endpoint rather than about this prompt."""
        return self.reason != "refused"


Outcome = Reply | Unanswered


@dataclass(frozen=True, slots=True)
class Kept:
    """What a file holds of one list: outcomes by place, attempts that failed, and tokens of all lists in the file.

    `tokens` in and out count what was lost on the way or was under way, too, at its most.
    """

    outcomes: Mapping[int, Outcome] = field(default_factory=dict)
    retried: Mapping[str, int] = field(default_factory=dict)
    tokens: tuple[int, int] = (0, 0)


class RemoteJournal:
    """A file of requests and replies; without a path nothing is kept. May be written from several threads."""

    def __init__(self, path: Path | None, list_key: str) -> None:
        self._key = list_key
        self._log = EventLog(path) if path is not None else None
        self._lock = threading.Lock()

    def asked(self, place: int, at_most: tuple[int, int]) -> None:
        """A request is about to be sent that may cost so many tokens in and out."""
        self._write("asked", place, at_most=list(at_most))

    def answered(self, place: int, reply: Reply) -> None:
        """A reply came."""
        self._write("reply", place, reply=asdict(reply))

    def failed(self, place: int, lost: tuple[int, int]) -> None:
        """A request ended without an answer; it may be sent again."""
        self._write("failed", place, lost=list(lost))

    def unanswered(self, place: int, outcome: Unanswered) -> None:
        """A prompt was handed on as unanswered, for good."""
        self._write("unanswered", place, reason=outcome.reason, detail=outcome.detail)

    def retried(self, why: str) -> None:
        """An attempt failed that is followed by another one."""
        self._write("retried", -1, why=why)

    def __enter__(self) -> RemoteJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is not None:
            self._log.close()

    def _write(self, kind: str, place: int, **fields: Any) -> None:
        if self._log is None:
            return
        with self._lock:
            self._log.write(kind, list=self._key, place=place, **fields)


def read_kept(path: Path | None, list_key: str) -> Kept:
    """What a file holds of this list; nothing where there is no file yet."""
    if path is None or not path.is_file():
        return Kept()
    outcomes: dict[int, Outcome] = {}
    retried: Counter[str] = Counter()
    under_way: dict[tuple[str, int], tuple[int, int]] = {}
    spent = (0, 0)
    for event in read_events(path):
        request = (event.get("list", ""), event.get("place", -1))
        ours = request[0] == list_key
        match event["kind"]:
            case "asked":
                under_way[request] = _two(event["at_most"])
            case "reply":
                under_way.pop(request, None)
                reply = Reply(**{**event["reply"], "lost": _two(event["reply"]["lost"])})
                spent = _sum(spent, (reply.input_tokens, reply.output_tokens), reply.lost)
                if ours:
                    outcomes[request[1]] = reply
            case "failed":
                under_way.pop(request, None)
                spent = _sum(spent, _two(event["lost"]))
            case "unanswered" if ours:
                outcomes[request[1]] = Unanswered(event["reason"], event["detail"])
            case "retried" if ours:
                retried[event["why"]] += 1
    return Kept(outcomes, retried, _sum(spent, *under_way.values()))


def _two(pair: Any) -> tuple[int, int]:
    first, second = pair
    return int(first), int(second)


def _sum(*pairs: tuple[int, int]) -> tuple[int, int]:
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
