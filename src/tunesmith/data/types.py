"""The nouns of the data room: a row as it was read, an example as it is learnt, a finding, the splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
Kind = Literal["answer", "preference", "rated", "text", "prompt"]
"""A conversation with its answer; with a better and a worse one; with a judged one; a text alone; a question alone."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file, with the 1-based line on which it begins."""

    values: Mapping[str, Any]
    line: int
    source: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant makes. `arguments` is the JSON text of an object; `id` is what the result refers to."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Toolset:
    """The tools a model is offered: JSON texts of OpenAI's definitions, in order.

    `parallel` False says that at most one may be called in a turn (OpenAI's `parallel_tool_calls`), None says nothing.
    """

    definitions: tuple[str, ...]
    parallel: bool | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` 0 keeps an assistant turn out of the loss (OpenAI's `weight`).

    `name` is who speaks, `tool_calls` what an assistant calls (its `content` may then be empty), and `tool_call_id`
    the call that a turn of the role `tool` answers. `tools` is set on the first question of a conversation that is
    made for a model (`offering`); in an `Example` they stand beside the messages.
    """

    role: str
    content: str
    weight: float = 1.0
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tools: Toolset | None = None


def offering(
    messages: Sequence[Message], definitions: Sequence[str], parallel: bool | None = None
) -> tuple[Message, ...]:
    """A conversation whose first question offers tools; as it is where there are none, or no question."""
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None or not definitions:
        return tuple(messages)
    asked = replace(messages[first], tools=Toolset(tuple(definitions), parallel))
    return (*messages[:first], asked, *messages[first + 1 :])


@dataclass(frozen=True, slots=True)
class Content:
    """What one row says, whatever it was written in.

    `messages` is a conversation. `expected` is the bare answer that is scored: the last message may carry a template's
    closing text after it. `tools` are the JSON texts of OpenAI's tool definitions, in order. `rejected` is the
    same conversation with the answer that is not wanted; `rating` says whether the answer is a good one.
    """

    messages: tuple[Message, ...]
    expected: str = ""
    tools: tuple[str, ...] = ()
    parallel_tool_calls: bool | None = None
    rejected: tuple[Message, ...] = ()
    rating: bool | None = None

    @property
    def kind(self) -> Kind:
        """What there is to learn."""
        return _kind(self.messages, self.rejected, self.rating)


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn or to be asked: a conversation whose last turn is the expected answer.

    `id` is a hash of the content (equal rows get distinct ids by occurrence), so it is stable across file order.
    `expected` is the bare answer that is scored; the last message may carry a template's closing text after it.
    `line` is the row's number where the source has no lines. The other fields are those of `Content`.
    """

    id: str
    messages: tuple[Message, ...]
    expected: str
    line: int
    source: str
    values: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    tools: tuple[str, ...] = ()
    parallel_tool_calls: bool | None = None
    rejected: tuple[Message, ...] = ()
    rating: bool | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def question(self) -> str:
        """The last user turn: what retrieval, trivial baselines and people look at."""
        return next((m.content for m in reversed(self.prompt) if m.role == "user"), "")

    @property
    def kind(self) -> Kind:
        """What there is to learn."""
        return _kind(self.messages, self.rejected, self.rating)

    @property
    def has_tools(self) -> bool:
        """Whether a tool is defined, called or answering."""
        return bool(self.tools) or any(m.tool_calls or m.role == "tool" for m in (*self.messages, *self.rejected))


def _kind(messages: tuple[Message, ...], rejected: tuple[Message, ...], rating: bool | None) -> Kind:
    if rejected:
        return "preference"
    if rating is not None:
        return "rated"
    if messages[-1].role != "assistant":
        return "prompt"
    return "answer" if len(messages) > 1 else "text"


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem, with every line it occurs on (never shortened here).

    `why` says what it does to a model, `example` is an excerpt of one occurrence without personal data and secrets,
    `detail` what is particular about the first occurrence.
    """

    code: str
    severity: Severity
    message: str
    fix: str
    count: int
    lines: tuple[int, ...] = ()
    field: str | None = None
    source: str | None = None
    why: str = ""
    example: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Splits:
    """The three parts; `hashes` freezes each by the ids in it."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    hashes: Mapping[str, str]
    explanation: str
