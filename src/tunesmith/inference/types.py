"""What an engine is: it turns conversations into answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.data.types import Message, ToolCall


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


class Engine(Protocol):
    """A model that can be asked, with its context length in tokens."""

    @property
    def context(self) -> int: ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt these turns make, the start of the answer included."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[Message]], max_new_tokens: int, skip: int = 0
    ) -> Iterator[Generation]:
        """Greedy answers to `prompts[skip:]`, in that order.

        Batches are formed from the whole list whatever `skip` is, so a list that was interrupted and is continued
        gives the same answers as one that was not.
        """
        ...
