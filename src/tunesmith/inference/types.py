"""What an engine is: it turns conversations into answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.data.types import Message


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated answer. `stopped` is False where the token limit cut it."""

    text: str
    prompt: str
    prompt_tokens: int
    answer_tokens: int
    stopped: bool


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
