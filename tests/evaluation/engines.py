"""A model that is a function of its prompt, for tests of everything around a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tunesmith.data.types import Message
from tunesmith.inference.types import Generation, Sampling
from tunesmith.tasks.types import AnswerForm


@dataclass
class FakeEngine:
    """Answers `reply(messages)`; a token is a word, and each turn costs one more. `asked` records whole lists.

    A form takes the first of its choices instead, or an empty list; a drawn answer has its place in the list behind it.
    Of scored answers the reply is e times as probable as any other.
    """

    reply: Callable[[Sequence[Message]], str]
    context: int = 10_000
    asked: list[list[tuple[Message, ...]]] = field(default_factory=list)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) + 1 for message in messages)

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        skip: int = 0,
        *,
        forms: Sequence[AnswerForm | None] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Generation]:
        self.asked.append([tuple(prompt) for prompt in prompts])
        for place, prompt in list(enumerate(prompts))[skip:]:
            assert self.count_tokens(prompt) + max_new_tokens <= self.context
            form = forms[place] if forms is not None else None
            text = self.reply(prompt) if form is None else form.choices[0] if form.choices else "[]"
            text += f" {place}" if sampling is not None else ""
            shown = "\n".join(f"{message.role}: {message.content}" for message in prompt)
            yield Generation(text, shown, self.count_tokens(prompt), len(text.split()), stopped=True)

    def score(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]], skip: int = 0
    ) -> Iterator[tuple[float, ...]]:
        self.asked.append([tuple(prompt) for prompt in prompts])
        for prompt, texts in list(zip(prompts, answers, strict=True))[skip:]:
            said = self.reply(prompt)
            weights = [math.e if text == said else 1.0 for text in texts]
            yield tuple(math.log(weight / sum(weights)) for weight in weights)
