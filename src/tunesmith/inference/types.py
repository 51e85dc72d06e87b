"""What an engine is: it turns conversations into answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tunesmith.data.types import Message, ToolCall
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated answer. `stopped` is False where the token limit cut it.

    `calls` are the tools it calls, where the prompt spoke of tools; `text` is then the calls as a JSON list, which is
    the form of `Example.expected`, and `beside` what is said beside them.
    """

    text: str
    prompt: str
    prompt_tokens: int
    answer_tokens: int
    stopped: bool
    calls: tuple[ToolCall, ...] = ()
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Answers drawn by chance: every answer from a stream of its own, of `seed` and its place in the list."""

    temperature: float
    seed: int


class Engine(Protocol):
    """A model that can be asked, with its context length in tokens."""

    @property
    def context(self) -> int: ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt these turns make, the start of the answer included."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        skip: int = 0,
        *,
        forms: Sequence[AnswerForm | None] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Generation]:
        """Answers to `prompts[skip:]`, in that order: greedy, or drawn where `sampling` is given.

        `forms` [len(prompts)] hold answers to a form while they are written (None: free). Batches are formed from the
        whole list whatever `skip` is, so a list that was interrupted and is continued gives the same answers as one
        that was not. Raises `EngineError` for a form that it cannot keep.
        """
        ...

    def score(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]], skip: int = 0
    ) -> Iterator[tuple[float, ...]]:
        """Of each of `prompts[skip:]`, the log-probabilities of its `answers` [len(prompts)][choices], to their end.

        The probability that the model says exactly this answer and stops. Raises `EngineError` where an engine cannot
        tell (an endpoint without log-probabilities).
        """
        ...


FloatArray = npt.NDArray[np.float32]


class ProbedEngine(Engine, Protocol):
    """An engine whose logits can be seen, to compare two of them number by number."""

    @property
    def renderer(self) -> Renderer:
        """How it is asked: its own tokenizer and template."""
        ...

    def logits(self, ids: Sequence[int]) -> FloatArray:
        """Logits [len(ids), vocabulary] after each of these tokens, before any sampling."""
        ...


class TokenRow(Protocol):
    """One row of tokens in a runtime, which remembers what it has read."""

    def append(self, ids: Sequence[int]) -> FloatArray:
        """Read further tokens; returns the logits [len(ids), vocabulary] after each of them."""
        ...

    def next(self, ids: Sequence[int]) -> FloatArray:
        """The same, but the logits [vocabulary] after the last of them only, which may be much cheaper."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@runtime_checkable
class RewindingRow(TokenRow, Protocol):
    """A row that can forget its last tokens, so that what several texts begin with is read once."""

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens that were read; what is read next gives the logits of a row of these."""
        ...


@runtime_checkable
class GreedyRow(TokenRow, Protocol):
    """A row whose runtime can write on by itself, faster than token by token through Python."""

    def write(self, ids: Sequence[int], limit: int, stops: frozenset[int]) -> list[int]:
        """Read `ids`, at least one, and write the most probable tokens behind them: up to `limit`, or until one of
        `stops`, which is then the last one. The very tokens that choosing the largest of `next`'s logits gives."""
        ...


class TokenModel(Protocol):
    """A model in any runtime that reads tokens and gives logits; `inference.stepping` makes an engine of it."""

    @property
    def vocabulary(self) -> int:
        """Logits per token."""
        ...

    def row(self) -> TokenRow:
        """A new, empty row."""
        ...


@runtime_checkable
class SizedModel(TokenModel, Protocol):
    """A model whose rows take their memory when they are made."""

    def row_of(self, length: int) -> TokenRow:
        """A new, empty row that will read up to `length` tokens."""
        ...
