"""What tasks have in common: defaults of everything a task may do, and the wording of those that ask for a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from tunesmith.data.types import Example
from tunesmith.tasks.answers import without_closing
from tunesmith.tasks.custom import CustomMetric
from tunesmith.tasks.metrics import by_name
from tunesmith.tasks.types import AnswerForm, Metric


@dataclass(frozen=True)
class TaskBase:
    """A task with the user's own metrics beside its own."""

    name: ClassVar[str]
    custom: tuple[CustomMetric, ...] = field(default=(), kw_only=True)

    @property
    def instruction(self) -> str:
        """The short instruction."""
        raise NotImplementedError

    @property
    def full_instruction(self) -> str:
        """The instruction for a model that was not tuned."""
        raise NotImplementedError

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """The metrics of this kind of task, the deciding one first."""
        raise NotImplementedError

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """`own_metrics`, then the user's, by name."""
        return by_name(*self.own_metrics, *self.custom)

    def parse(self, text: str) -> Any | None:
        """The value in a model's answer."""
        raise NotImplementedError

    def read(self, text: str, example: Example) -> Any | None:
        """The value in an answer to `example`; most answers say all by themselves."""
        return self.parse(text)

    def read_samples(self, texts: Sequence[str], example: Example) -> Any | None:
        """The value of several answers to `example`; most tasks look at the greedy one, the first."""
        return self.read(texts[0], example)

    def target(self, example: Example) -> Any:
        """The value in an example's expected answer."""
        raise NotImplementedError

    def reply(self, expected: str) -> str:
        """What a model is to learn to say where a row expects `expected`."""
        return expected

    def answer_form(self, example: Example) -> AnswerForm | None:
        """The form to which an answer can be held; none by default."""
        return None

    def slices(self, example: Example) -> Mapping[str, str]:
        """The groups of rows this one belongs to, by the name of the division; none by default."""
        return {}


@dataclass(frozen=True)
class TextTask(TaskBase):
    """A task whose answer is asked for in one sentence and read as text."""

    given_instruction: str | None = field(default=None, kw_only=True)
    closing: str = field(default="", kw_only=True)
    default_instruction: ClassVar[str]
    answer_wording: ClassVar[str]

    @property
    def instruction(self) -> str:
        """The recipe's instruction, else one sentence."""
        return self.default_instruction if self.given_instruction is None else self.given_instruction

    @property
    def full_instruction(self) -> str:
        """The instruction, and the form of the answer."""
        return f"{self.instruction or self.default_instruction}\n{self.answer_wording}"

    def parse(self, text: str) -> Any | None:
        """The text without the template's closing text."""
        return without_closing(text, self.closing)
