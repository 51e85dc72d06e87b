"""What a task is: how it asks, how it reads answers, how it scores them.

Every metric is a function of *sums of per-item statistics*: an accuracy is the sum of hits over the sum of ones, an
entity F1 comes from summed true and false positives, a macro-F1 from such counts per class. So one bootstrap serves
them all: resampling items is re-weighting the sums (see `evaluation/statistics.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tunesmith.data.types import Example

FloatArray = npt.NDArray[np.float64]


class Metric(Protocol):
    """A metric computed from sums of per-item statistics."""

    @property
    def name(self) -> str: ...

    @property
    def binary(self) -> bool:
        """Whether each item is right (1) or wrong (0), so that McNemar's test applies."""
        ...

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """Per-item statistics [n, d]; `parsed` holds None for unreadable answers, which count as wrong."""
        ...

    def finish(self, sums: FloatArray) -> FloatArray:
        """The metric [...] from sums over items [..., d]."""
        ...

    def item(self, statistics: FloatArray) -> FloatArray:
        """A score per item [n], for tables and error lists."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The closed form of an answer: exactly one of `choices`, or JSON that keeps `json_schema`; one of the two is set.

    With a `separator` any number of the choices may stand in a row with this text between them, or `none` in their
    place where that is a text. `closing` is the text that a template puts after every answer, which a tuned model says
    too.
    """

    choices: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    closing: str = ""
    separator: str | None = None
    none: str | None = None


class Task(Protocol):
    """One kind of task, already fitted to the data (labels, answer form)."""

    @property
    def name(self) -> str: ...

    @property
    def instruction(self) -> str:
        """The short instruction a tuned model is trained and asked with; may be empty."""
        ...

    @property
    def full_instruction(self) -> str:
        """The instruction for a model that was not tuned: says the form of the answer and, where closed, lists it."""
        ...

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Metrics by name; the first decides unless the goal names another."""
        ...

    def parse(self, text: str) -> Any | None:
        """The value in a model's answer, or None where it cannot be read. JSON values only: they are kept in files."""
        ...

    def read(self, text: str, example: Example) -> Any | None:
        """`parse`, and where a metric needs it, what the answer has to do with the input of `example`."""
        ...

    def read_samples(self, texts: Sequence[str], example: Example) -> Any | None:
        """The value of several answers to `example`, the greedy one first, for metrics of several tries."""
        ...

    def reply(self, expected: str) -> str:
        """What a model is to learn to say where a row expects `expected`: of several references the first."""
        ...

    def answer_form(self, example: Example) -> AnswerForm | None:
        """The form to which an answer can be held while it is written; None where answers are free."""
        ...

    def slices(self, example: Example) -> Mapping[str, str]:
        """The groups of rows this one belongs to, by the name of the division: {"label": "lost_card"}."""
        ...

    def target(self, example: Example) -> Any:
        """The value in an example's expected answer."""
        ...
