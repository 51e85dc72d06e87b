"""The nouns of the data room: a row as it was read, an example as it is learnt, a finding, the splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file, with the 1-based line on which it begins."""

    values: Mapping[str, Any]
    line: int
    source: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` 0 keeps an assistant turn out of the loss (OpenAI's `weight`)."""

    role: str
    content: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn or to be asked: a conversation whose last turn is the expected answer.

    `id` is a hash of the content (equal rows get distinct ids by occurrence), so it is stable across file order.
    `expected` is the bare answer that is scored; the last message may carry a template's closing text after it.
    """

    id: str
    messages: tuple[Message, ...]
    expected: str
    line: int
    source: str
    values: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def question(self) -> str:
        """The last user turn: what retrieval, trivial baselines and people look at."""
        return next((m.content for m in reversed(self.prompt) if m.role == "user"), "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem, with every line it occurs on (never shortened here)."""

    code: str
    severity: Severity
    message: str
    fix: str
    count: int
    lines: tuple[int, ...] = ()
    field: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Splits:
    """The three parts; `hashes` freezes each by the ids in it."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    hashes: Mapping[str, str]
    explanation: str
