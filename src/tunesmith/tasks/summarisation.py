"""Summarisation: a short text that says what a long one does, compared with one or several references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.answers import references
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.metrics import MeanMetric, ratio
from tunesmith.tasks.types import FloatArray, Metric
from tunesmith.tasks.words import words

COPIED_RUN = 4
"""Words in a row that must stand in the input alike to count as copied."""


@dataclass(frozen=True)
class Summarisation(TextTask):
    """A summary per input. A JSON list of texts as the expected answer holds several references; the first is learnt.

    A summary that was read is {"text": …, "copied": share of its words in copied runs}.
    """

    name: ClassVar[str] = "summarisation"
    default_instruction: ClassVar[str] = "Summarise the text."
    answer_wording: ClassVar[str] = "Reply with the summary only."

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """ROUGE-L decides; ROUGE-1 and -2, the agreement in length, and the copied share beside it."""
        return (
            MeanMetric("rouge_l", binary=False, score=lambda answer, target: rouge(answer["text"], target)[2]),
            MeanMetric("rouge_1", binary=False, score=lambda answer, target: rouge(answer["text"], target)[0]),
            MeanMetric("rouge_2", binary=False, score=lambda answer, target: rouge(answer["text"], target)[1]),
            LengthRatio(),
            MeanMetric("copied_share", binary=False, score=lambda answer, target: float(answer["copied"])),
        )

    def parse(self, text: str) -> dict[str, Any]:
        """The summary; nothing is copied from an input that is not known."""
        return {"text": super().parse(text), "copied": 0.0}

    def read(self, text: str, example: Example) -> dict[str, Any]:
        """The summary and its copied share."""
        summary = str(super().parse(text))
        return {"text": summary, "copied": copied_share(summary, example.question)}

    def target(self, example: Example) -> list[str]:
        """All references."""
        return list(references(example.expected)) or [""]

    def reply(self, expected: str) -> str:
        """The first reference."""
        return next(iter(references(expected)), expected)

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by the number of references."""
        count = len(self.target(example))
        return {"references": "1" if count == 1 else "2 and more"}


def rouge(answer: str, target: Sequence[str]) -> tuple[float, float, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 (Lin 2004), over words of any script; of several references the best for each."""
    return _rouge(answer, tuple(target))


@lru_cache(maxsize=65_536)
def _rouge(answer: str, target: tuple[str, ...]) -> tuple[float, float, float]:
    scores = [_scorer().score(reference, answer) for reference in target]
    one, two, longest = (max(s[kind].fmeasure for s in scores) for kind in ("rouge1", "rouge2", "rougeL"))
    return float(one), float(two), float(longest)


class _Words:
    """The tokenizer interface of rouge-score over `words`."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())


def copied_share(answer: str, source: str) -> float:
    """The share of the answer's words within runs of at least `COPIED_RUN` words that stand in the source alike.

    A stricter relative of extractive fragment coverage (arXiv:1804.11283), which counts single words too.
    """
    said, given = words(answer), words(source)
    if not said:
        return 0.0
    runs = {tuple(given[i : i + COPIED_RUN]) for i in range(len(given) - COPIED_RUN + 1)}
    copied = np.zeros(len(said), dtype=bool)
    for i in range(len(said) - COPIED_RUN + 1):
        if tuple(said[i : i + COPIED_RUN]) in runs:
            copied[i : i + COPIED_RUN] = True
    return float(copied.mean())


@dataclass(frozen=True)
class LengthRatio:
    """Agreement in length: words of the shorter over words of the longer, of answer and reference, summed over rows.

    1 where every answer is as long as its reference (of several the one nearest in length). Statistics per item:
    (shorter, longer); an unreadable answer has length 0.
    """

    name = "length_ratio"
    binary = False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 2]."""
        result = np.zeros((len(parsed), 2))
        for row, answer, target in zip(result, parsed, expected, strict=True):
            said = len(words(answer["text"])) if answer is not None else 0
            wanted = min((len(words(reference)) for reference in target), key=lambda count: abs(count - said))
            row[:] = min(said, wanted), max(said, wanted)
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """Ratio [...] from sums [..., 2]; 1 where nothing was wanted and nothing said."""
        return ratio(sums[..., 0], sums[..., 1], empty=1.0)

    def item(self, statistics: FloatArray) -> FloatArray:
        """The ratio of each answer [n]."""
        return self.finish(statistics)
