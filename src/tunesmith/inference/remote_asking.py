"""Asking an endpoint in the words it understands: what its refusals say of the request is learnt and kept to.

Endpoints differ in what a request may hold. Newer models want the most tokens of an answer under another name or take
no temperature, and smaller servers know no form of the answer. Such a refusal is no answer to the question: it is asked
again without what was refused, and all later ones are asked so at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.inference.endpoint import AskError, Budget, Endpoint, RefusedError, Reply, UnreadableError, token_bound
from tunesmith.inference.response_format import response_format
from tunesmith.tasks.types import AnswerForm

_READINGS = 3
"""Tries where something else than a chat completion comes back."""
_FORM = "the form of the answer (response_format)"


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt of a list as it is sent. options: further fields of the request."""

    place: int
    turns: tuple[Mapping[str, str], ...]
    form: AnswerForm | None
    options: Mapping[str, Any]

    @property
    def most_tokens(self) -> int:
        """Tokens of the request at most, with the form of the answer in it."""
        return token_bound(self.turns, self.in_form)

    @property
    def in_form(self) -> Mapping[str, Any]:
        """The options, with the form of the answer among them where there is one."""
        return self.options if self.form is None else {**self.options, "response_format": response_format(self.form)}


@dataclass(frozen=True, slots=True)
class Dialect:
    """What of a request an endpoint takes.

    limit_field: the name of the most tokens of an answer. temperature: whether one may be given. forms: whether an
    answer can be held to a form.
    """

    limit_field: str = "max_tokens"
    temperature: bool = True
    forms: bool = True


class Asker:
    """Asks questions within a budget, from several threads. `not_taken` says in words what the endpoint refused."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.not_taken: tuple[str, ...] = ()
        self._dialect = Dialect()
        self._form_taken = False
        self._lock = threading.Lock()

    def ask(self, endpoint: Endpoint, question: Question, max_tokens: int) -> Reply:
        """The reply to a question. Raises what `Endpoint.ask` raises, `UnreadableError` after several tries."""
        lost, readings, without_form = (0, 0), 0, False
        try:
            while True:
                dialect = replace(self._dialect, forms=False) if without_form else self._dialect
                try:
                    reply = self._asked_in(dialect, endpoint, question, max_tokens)
                    if without_form:  # so it was the form that it did not take before
                        self._adapt(_FORM, forms=False)
                    return replace(reply, lost=_both(reply.lost, lost))
                except UnreadableError as error:
                    readings += 1
                    if readings == _READINGS:
                        raise
                    lost = _both(lost, error.lost)
                    endpoint.retried("unreadable")
                    endpoint.sleep(0.25 * 2**readings)
                except RefusedError as error:
                    adapted = self._adapt_to(error, dialect, with_form=question.form is not None)
                    # A refusal that names no field may be one of the form, where none was taken so far.
                    if not adapted and (without_form or question.form is None or not dialect.forms or self._form_taken):
                        raise
                    lost = _both(lost, error.lost)
                    without_form = without_form or not adapted
        except AskError as error:
            error.lost = _both(error.lost, lost)
            raise

    def _asked_in(self, dialect: Dialect, endpoint: Endpoint, question: Question, max_tokens: int) -> Reply:
        options = dict(question.in_form if dialect.forms else question.options)
        if not dialect.temperature:
            options.pop("temperature", None)
        asking = replace(endpoint, limit_field=dialect.limit_field)
        reply = asking.ask(question.turns, self.budget, max_tokens=max_tokens, options=options)
        self._form_taken = self._form_taken or "response_format" in options
        return reply

    def _adapt_to(self, error: RefusedError, dialect: Dialect, *, with_form: bool) -> bool:
        """Whether the refusal names a field of the request that can be left out or named otherwise from now on."""
        said = error.told.lower()
        if dialect.limit_field == "max_tokens" and "max_completion_tokens" in said:
            self._adapt("", limit_field="max_completion_tokens")
        elif dialect.temperature and "temperature" in said:
            self._adapt("a temperature, so its answers are drawn by chance", temperature=False)
        elif with_form and dialect.forms and any(name in said for name in ("response_format", "schema")):
            self._adapt(_FORM, forms=False)
        else:
            return False
        return True

    def _adapt(self, told: str, **changes: Any) -> None:
        """Several threads may find out the same, or different things, at once."""
        with self._lock:
            if told and told not in self.not_taken:
                self.not_taken = (*self.not_taken, told)
            self._dialect = replace(self._dialect, **changes)


def _both(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Tokens in and out of two attempts."""
    return a[0] + b[0], a[1] + b[1]
