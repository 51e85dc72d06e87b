"""A model that is a function of its prompt, for tests of everything around a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tunesmith.data.types import Message
from tunesmith.inference.types import Generation


@dataclass
class FakeEngine:
    """Answers `reply(messages)`; a token is a word, and each turn costs one more. `asked` records whole lists."""

    reply: Callable[[Sequence[Message]], str]
    context: int = 10_000
    asked: list[list[tuple[Message, ...]]] = field(default_factory=list)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) + 1 for message in messages)

    def generate(
        self, prompts: Sequence[Sequence[Message]], max_new_tokens: int, skip: int = 0
    ) -> Iterator[Generation]:
        self.asked.append([tuple(prompt) for prompt in prompts])
        for prompt in prompts[skip:]:
            assert self.count_tokens(prompt) + max_new_tokens <= self.context
            text = self.reply(prompt)
            shown = "\n".join(f"{message.role}: {message.content}" for message in prompt)
            yield Generation(text, shown, self.count_tokens(prompt), len(text.split()), stopped=True)
