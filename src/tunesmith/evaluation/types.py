"""The nouns of evaluation: an answer, the candidate that gives it, the score it gets, the table they end in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunesmith.data.types import Example


@dataclass(frozen=True, slots=True)
class Answer:
    """What a candidate said to one example. Tokens are 0 for candidates without a tokenizer.

    `probabilities` by label where every label was scored; they add up to 1. `samples` are further answers, drawn.
    """

    text: str
    prompt: str
    prompt_tokens: int = 0
    answer_tokens: int = 0
    stopped: bool = True
    probabilities: Mapping[str, float] | None = None
    samples: tuple[str, ...] = ()


class Candidate(Protocol):
    """Anything that answers: a prompt around the base, a trivial rule, the tuned model, a copy of it, an endpoint."""

    @property
    def name(self) -> str: ...

    @property
    def notes(self) -> Mapping[str, Any]:
        """Facts worth showing beside the score, such as the k really used."""
        ...

    def answer(self, examples: Sequence[Example], skip: int = 0) -> Iterator[Answer]:
        """Answers to `examples[skip:]` in that order, yielded as they become known (see `Engine.generate`)."""
        ...


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One line of `evaluation/<candidate>.jsonl`. `parsed` is None where the answer could not be read."""

    id: str
    prompt: str
    answer: str
    expected: str
    parsed: Any
    scores: Mapping[str, float]
    prompt_tokens: int
    answer_tokens: int
    stopped: bool
    probabilities: Mapping[str, float] | None = None
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric of one candidate with its interval, as fractions 0-1."""

    candidate: str
    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was measured of one candidate on the test set. Latencies in seconds, one request at a time."""

    candidate: str
    rows: tuple[ScoredAnswer, ...]
    metrics: tuple[MetricValue, ...]
    latency_p50: float
    latency_p95: float
    seconds: float
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """`a` minus `b` on the same rows.

    `p_value` is that of the `test` named; None where none was made. `clusters` is the number of groups of rows that
    hang together, which then count in place of the `n` rows, and `differing_clusters` of those on which a and b
    measured differently; None where rows are independent.
    """

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    p_value: float | None
    n: int
    test: str = "McNemar"
    clusters: int | None = None
    differing_clusters: int | None = None
