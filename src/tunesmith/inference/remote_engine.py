"""A model behind an OpenAI-compatible endpoint as an engine: the same questions, answered somewhere else.

    prompts -> several requests at once -> replies as they come (kept) -> answers in the order of the prompts

Nothing that goes wrong there is hidden: a prompt without an answer after all tries is handed on as an empty answer and
counted by reason, and an endpoint that begins to answer with another model is noticed by the name and the fingerprint
its answers bear (`notes`). Only an endpoint that is gone for good ends the list, with everything it said kept.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.inference.endpoint import (
    AskError,
    Budget,
    Endpoint,
    FailedError,
    RefusedError,
    Reply,
    SilentError,
    UnreadableError,
    token_bound,
)
from tunesmith.inference.remote_asking import Asker, Question
from tunesmith.inference.remote_journal import Kept, Outcome, RemoteJournal, Unanswered, read_kept
from tunesmith.inference.response_format import response_format, unwrapped
from tunesmith.inference.types import Generation, Sampling
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.answers import read_answer
from tunesmith.text.plain_tools import in_plain_words
from tunesmith.text.render import offered_by, speaks_of_tools

_GIVE_UP = 5
"""Prompts in a row without any answer after which the endpoint is taken to be gone."""
_AHEAD = 4
"""Times the concurrency that is handed to the threads, so that one slow answer does not stop the others."""
_ANY_CONTEXT = 1 << 30

Wait = Callable[[threading.Event, float], bool]
"""Waits so many seconds, or until the event is set; whether it is."""


class _StoppedError(AskError):
    """The list is not wanted any more, or the question was not yet asked when it ended."""


@dataclass(frozen=True, slots=True)
class _Course:
    """One list on its way. `stop` ends what is under way; `failed` holds why, where a failure did it."""

    journal: RemoteJournal
    max_tokens: int
    stop: threading.Event = field(default_factory=threading.Event)
    failed: list[AskError] = field(default_factory=list)


class RemoteEngine:
    """Answers through `endpoint`; implements `inference.types.Engine`.

    Parameters
    ----------
    endpoint: where to ask, with its time-out and attempts.
    budget: counts what is spent, of earlier processes too, and ends the list where a ceiling is reached.
    concurrency: requests under way at once.
    journal: the file in which requests and replies are kept; None keeps none. What is kept of a list of one prompt
        says what was spent and answers nothing, as nothing can overtake it: so its time can be measured.
    wait: between tries.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        budget: Budget,
        *,
        concurrency: int = 4,
        journal: Path | None = None,
        wait: Wait = threading.Event.wait,
    ) -> None:
        self.endpoint, self.budget, self.concurrency, self.journal = endpoint, budget, concurrency, journal
        self._wait = wait
        self._asker = Asker(budget)
        self._lock = threading.Lock()
        self._list_key = ""
        self._outcomes: dict[int, Outcome] = {}
        self._retried: Counter[str] = Counter()
        self._charged = False

    @property
    def context(self) -> int:
        """An endpoint does not say how much it reads: nothing is left out, and what is too long it refuses."""
        return _ANY_CONTEXT

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """At most so many: a token is at least one byte. Its answers say how many there really were."""
        return token_bound(_turns(messages))

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        skip: int = 0,
        *,
        forms: Sequence[AnswerForm | None] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Generation]:
        """See `inference.types.Engine.generate`.

        Raises `EngineError` where the endpoint refuses everything, is gone, or the budget is spent: repeated, the list
        goes on with what is missing.
        """
        questions = [
            _question_of(place, prompt, forms[place] if forms is not None else None, sampling)
            for place, prompt in enumerate(prompts)
        ]
        key = _list_key(self.endpoint, questions, max_new_tokens)
        kept = self._begin(key, alone=len(questions) == 1)
        course = _Course(RemoteJournal(self.journal, key), max_new_tokens)
        for question, outcome in self._handed_on(questions[skip:], kept, course):
            yield _generation(outcome, prompts[question.place], question)

    def score(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]], skip: int = 0
    ) -> Iterator[tuple[float, ...]]:
        """Not possible: an endpoint does not tell how probable an answer is that it has not given itself."""
        raise EngineError(
            "an endpoint cannot score labels",
            where=self.endpoint.host,
            expected="answers that are written",
            fix="leave `scored` out of evaluate.decoding for this model",
        )

    def notes(self) -> Mapping[str, Any]:
        """Of the list asked last: who answered, what was not answered and why, and what the endpoint does not take."""
        replies = [outcome for outcome in self._outcomes.values() if isinstance(outcome, Reply)]
        missing = [outcome for outcome in self._outcomes.values() if isinstance(outcome, Unanswered)]
        models = Counter(reply.model for reply in replies)
        prints = Counter(reply.fingerprint for reply in replies if reply.fingerprint)
        notes: dict[str, Any] = {
            "model": self.endpoint.model,
            "endpoint": self.endpoint.host,
            "answered_by": dict(sorted(models.items())),
            "unanswered_rows": len(missing),
            "spent": {"tokens": self.budget.tokens, "money": round(self.budget.money, 8)},
        }
        if missing:
            reasons = Counter(outcome.reason for outcome in missing)
            notes["unanswered_reasons"] = dict(sorted(reasons.items()))
            notes["unanswered_example"] = next((one.detail for one in missing if one.detail), "")
        if len(models) > 1:
            notes["model_changed"] = f"the endpoint answered with several models: {_counted(models)}"
        if len(prints) > 1:
            notes["fingerprint_changed"] = f"what runs the model changed while it was asked: {_counted(prints)}"
        if filtered := sum(reply.finish_reason == "content_filter" for reply in replies):
            notes["filtered_rows"] = filtered
        if uncounted := sum(not reply.counted for reply in replies):
            notes["rows_with_tokens_at_most"] = uncounted
        if self._retried:
            notes["retried"] = dict(sorted(self._retried.items()))
        if told := self._asker.not_taken:
            notes["not_taken_by_the_endpoint"] = list(told)
        return notes

    def count_spent(self) -> None:
        """Count in the budget, once, what earlier processes spent; asking does so first.

        To be called where several engines share a budget, and one of them may have nothing left to ask.
        """
        if not self._charged:
            self._charged = True
            self.budget.correct((0, 0), read_kept(self.journal, "").tokens)

    def _begin(self, key: str, *, alone: bool) -> Kept:
        """Go on with what is known of this list."""
        self.count_spent()
        if key != self._list_key:
            self._list_key, self._outcomes, self._retried = key, {}, Counter()
        if alone:
            return Kept()
        kept = read_kept(self.journal, key)
        self._outcomes.update(kept.outcomes)
        if self.journal is not None:
            self._retried = Counter(kept.retried)
        return kept

    def _handed_on(
        self, questions: Sequence[Question], kept: Kept, course: _Course
    ) -> Iterator[tuple[Question, Outcome]]:
        """Outcomes in order. Prompts without an answer are held until the endpoint is seen to be still there."""
        held: list[tuple[Question, Outcome]] = []
        alive = any(isinstance(outcome, Reply) for outcome in kept.outcomes.values())
        doubtful = 0
        with course.journal, ThreadPoolExecutor(self.concurrency) as pool:
            try:
                for question, outcome in self._in_order(pool, questions, kept, course):
                    self._outcomes[question.place] = outcome
                    held.append((question, outcome))
                    if isinstance(outcome, Reply):
                        alive, doubtful = True, 0
                    elif outcome.doubtful:
                        doubtful += 1
                        if doubtful == _GIVE_UP:
                            raise self._gone(outcome)
                    if not doubtful:
                        yield from _released(held, kept, course.journal)
                if doubtful and not alive:
                    raise self._gone(next(o for _, o in held if isinstance(o, Unanswered) and o.doubtful))
                yield from _released(held, kept, course.journal)
            finally:
                course.stop.set()

    def _in_order(
        self, pool: ThreadPoolExecutor, questions: Sequence[Question], kept: Kept, course: _Course
    ) -> Iterator[tuple[Question, Outcome]]:
        """Outcomes in the order of the questions, `concurrency` of them under way; what is kept is not asked."""
        under_way: dict[int, Future[Outcome]] = {}
        rest = iter([question for question in questions if question.place not in kept.outcomes])

        def refill(count: int) -> None:
            for question in islice(rest, count):
                under_way[question.place] = pool.submit(self._outcome, question, course)

        refill(self.concurrency * _AHEAD)
        for question in questions:
            if question.place in kept.outcomes:
                yield question, kept.outcomes[question.place]
                continue
            try:
                outcome = under_way.pop(question.place).result()
            except _StoppedError as stopped:
                raise self._told(course.failed[0]) from stopped
            refill(1)
            yield question, outcome

    def _outcome(self, question: Question, course: _Course) -> Outcome:
        """One question asked to its end, in a thread of its own; its reply is kept at once."""
        if course.stop.is_set():
            raise _StoppedError
        course.journal.asked(question.place, (question.most_tokens, course.max_tokens))

        def rest(seconds: float) -> None:
            if self._wait(course.stop, seconds):
                raise _StoppedError

        def retried(why: str) -> None:
            reason = _kind(why)
            with self._lock:
                self._retried[reason] += 1
            course.journal.retried(reason)

        endpoint = replace(self.endpoint, sleep=rest, retried=retried)
        try:
            reply = self._asker.ask(endpoint, question, course.max_tokens)
        except AskError as error:
            course.journal.failed(question.place, error.lost)
            if isinstance(error, _StoppedError):
                raise
            if isinstance(error, SilentError):
                return Unanswered("no answer", error.told.what)
            if isinstance(error, UnreadableError):
                return Unanswered("unreadable", error.told.what)
            if isinstance(error, RefusedError):
                return Unanswered("refused", str(error))
            course.failed.append(error)
            course.stop.set()
            raise _StoppedError from error
        course.journal.answered(question.place, reply)
        return reply

    def _told(self, failure: AskError) -> EngineError:
        if isinstance(failure, FailedError):
            return failure.told
        return EngineError(
            f"the ceiling of {failure} is reached",
            where=self.endpoint.host,
            expected="a budget for all prompts",
            fix=f"raise the ceiling of {self.endpoint.set_by} and repeat: it goes on with what is missing",
        )

    def _gone(self, last: Unanswered) -> EngineError:
        return EngineError(
            f"the endpoint gives no answers: {last.detail}",
            where=self.endpoint.host,
            expected="a chat completion for at least some prompts",
            fix=f"check {self.endpoint.set_by}, or repeat it later: what it answered is kept",
        )


def _released(
    held: list[tuple[Question, Outcome]], kept: Kept, journal: RemoteJournal
) -> Iterator[tuple[Question, Outcome]]:
    """What was held, which is then empty; that a prompt stays unanswered is written down."""
    while held:
        question, outcome = held.pop(0)
        if isinstance(outcome, Unanswered) and question.place not in kept.outcomes:
            journal.unanswered(question.place, outcome)
        yield question, outcome


def _question_of(place: int, prompt: Sequence[Message], form: AnswerForm | None, sampling: Sampling | None) -> Question:
    drawn = {} if sampling is None else {"seed": sampling.seed + place}
    options = {"temperature": 0.0 if sampling is None else sampling.temperature, **drawn}
    return Question(place, _turns(prompt), form, options)


def _turns(messages: Sequence[Message]) -> tuple[Mapping[str, str], ...]:
    """What is sent. Tools are told in plain words, which any endpoint takes."""
    plain = in_plain_words(messages, offered_by(messages)) if speaks_of_tools(messages) else tuple(messages)
    return tuple({"role": message.role, "content": message.content} for message in plain)


def _list_key(endpoint: Endpoint, questions: Sequence[Question], max_tokens: int) -> str:
    asked = [
        [list(q.turns), dict(q.options), response_format(q.form) if q.form is not None else None] for q in questions
    ]
    told = json.dumps([endpoint.url, endpoint.model, max_tokens, asked], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _generation(outcome: Outcome, prompt: Sequence[Message], question: Question) -> Generation:
    shown = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in question.turns)
    if isinstance(outcome, Unanswered):
        return Generation("", shown, 0, 0, stopped=True)  # no limit cut it
    text = outcome.text if question.form is None else unwrapped(outcome.text, question.form)
    read = read_answer(text) if speaks_of_tools(prompt) else None
    return Generation(
        text=read.expected_form if read is not None else text,
        prompt=shown,
        prompt_tokens=outcome.input_tokens,
        answer_tokens=outcome.output_tokens,
        stopped=outcome.finish_reason != "length",
        calls=read.calls if read is not None else (),
        beside=read.content if read is not None and read.calls else "",
    )


def _kind(why: str) -> str:
    """Reasons that are the same but for addresses and numbers, counted together."""
    if why.startswith("status ") or why == "unreadable":
        return why
    return "timed out" if "timed out" in why else "connection lost"


def _counted(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(found.items()))
