"""Generation: a free text per input, compared with the expected one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from tunesmith.data.types import Example
from tunesmith.tasks.answers import without_closing
from tunesmith.tasks.base import TaskBase
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.tasks.question_answering import same
from tunesmith.tasks.types import Metric
from tunesmith.tasks.words import words


@dataclass(frozen=True)
class Generation(TaskBase):
    """A text per input. With `short_answers` exact match decides, else ROUGE-L: few texts are met word by word."""

    short_answers: bool = False
    given_instruction: str | None = None
    closing: str = ""
    name: ClassVar[str] = "generation"

    @property
    def instruction(self) -> str:
        """The recipe's instruction; none by default, as the inputs of a generation are requests already."""
        return self.given_instruction or ""

    @property
    def full_instruction(self) -> str:
        """The instruction, and that nothing but the answer is wanted."""
        lead = self.instruction or "Answer the request."
        return f"{lead}\nReply with the answer only."

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Exact match and ROUGE-L, of which the first decides, and the match without case, punctuation and articles."""
        exact = MeanMetric("exact_match", binary=True, score=lambda answer, target: float(collapse(answer) == target))
        rouge = MeanMetric("rouge_l", binary=False, score=rouge_l)
        near = MeanMetric("normalised_match", binary=True, score=lambda answer, target: float(same(answer, target)))
        return (exact, rouge, near) if self.short_answers else (rouge, exact, near)

    def parse(self, text: str) -> str:
        """The answer without the template's closing text; every text can be read."""
        return without_closing(text, self.closing)

    def target(self, example: Example) -> str:
        """The expected text with its white space collapsed."""
        return collapse(example.expected)


def collapse(text: str) -> str:
    """`text` with every run of white space as one space, none at the ends; case and punctuation stay.

    This is the only normalisation of exact match.
    """
    return " ".join(text.split())


def rouge_l(answer: str, target: str) -> float:
    """ROUGE-L F1 (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"), over words of any script."""
    return float(_scorer().score(target, answer)["rougeL"].fmeasure)


class _Words:
    """The tokenizer interface of rouge-score over `words`."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())
